"""The sweep file: schema, expansion, Ray Tune."""

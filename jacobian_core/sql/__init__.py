"""DuckDB over the lake: views, marts, checks and reports. The statements themselves are in `sql/` of the repository."""

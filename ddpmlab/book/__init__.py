"""What makes the report: pages run through papermill, published values, tables, claims, the style of figures."""

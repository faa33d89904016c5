"""Other libraries' environment interfaces, each imported on demand."""

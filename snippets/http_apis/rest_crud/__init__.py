"""A resource with correct HTTP semantics: FastAPI in front of PostgreSQL."""

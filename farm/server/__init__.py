"""The farm over HTTP: OmniRT's routes and ours, the farm's page, metrics.  The only door to FastAPI and uvicorn."""

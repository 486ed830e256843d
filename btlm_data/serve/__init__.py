"""`btlm-data serve`: pages in a browser for digging in datasets and runs. Needs the extra `serve` (starlette,
uvicorn).
"""

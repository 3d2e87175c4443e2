"""A page in the browser to try a network: python -m fcn_jax.demo. By Starlette and uvicorn (the extra `demo`)."""

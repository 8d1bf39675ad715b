"""The server of convserve. Start it with `convserve serve`; `app.py` says how its parts are put together."""

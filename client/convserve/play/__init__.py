"""`convserve play`: a page in the browser on which every parameter of Conv2D is a control.

`app.py` is the page, a marimo notebook; `page.css` is how it looks. What it shows is worked out by the modules beside
it, none of which knows marimo, and is put together by `view`.
"""

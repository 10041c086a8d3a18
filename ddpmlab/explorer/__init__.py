"""The trajectory explorer: real networks and exact denoisers, pushed through their samplers in the page.

One ES module, `module()`, in two hosts: `Explorer`, a live widget over anywidget that shows any denoiser and dataset of
the user's, and `page.fragment()`, HTML with its state inside that runs from a file, without a server and without a
network connection. What both show is drawn by view.js and computed by engine.js.
"""

from ddpmlab.explorer.page import document, fragment, module

__all__ = ["Explorer", "document", "fragment", "module"]


def __getattr__(name):
    if name == "Explorer":  # anywidget is an extra: a page needs none
        try:
            from ddpmlab.explorer.widget import Explorer
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("anywidget", "traitlets", "ipywidgets"):
                raise
            raise ModuleNotFoundError(
                f"the live explorer needs {error.name}; install it with: pip install 'ddpmlab[book]'", name=error.name
            ) from error
        return Explorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Sphinx extension: what settings alone cannot do.

The links made from the repository's address: `repository.url` in _config.yml is the only place where
it stands. Empty: no page links to a repository or to a cloud service. Filled in: source, edit and
issue links on every page; Binder, Colab and JupyterHub on every notebook. The theme by itself stops
with an error where the buttons are wanted and the address is missing.
"""
from urllib.parse import urlencode

# nbgitpuller's own page: it asks for the address of the reader's hub and makes the link from it.
HUB_LINK_MAKER = "https://jupyterhub.github.io/nbgitpuller/link"


def switch_links(app, config):
    """Turn all links that are made from the repository's address on, or all off."""
    options = config.html_theme_options
    known = bool(options.get("repository_url"))
    for button in ("use_repository_button", "use_edit_page_button", "use_issues_button"):
        options[button] = known
    if not known:
        options.pop("launch_buttons", None)


def add_jupyterhub(app, pagename, templatename, context, doctree):
    """Add the JupyterHub link where no hub is configured: there is no hub that everybody may use."""
    options = app.config.html_theme_options
    if options.get("launch_buttons", {}).get("jupyterhub_url"):
        return                                   # the theme has made the direct link
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            folder = options["repository_url"].rstrip("/").rsplit("/", 1)[-1]
            query = {"repo": options["repository_url"], "branch": options["repository_branch"],
                     "urlpath": f"lab/tree/{folder}/{pagename}.ipynb"}
            group["buttons"].append({
                "type": "link", "text": "JupyterHub", "tooltip": "Open on your own JupyterHub",
                "icon": "_static/images/logo_jupyterhub.svg", "url": f"{HUB_LINK_MAKER}?{urlencode(query)}"})


def mend_tables(app, pagename, templatename, context, doctree):
    """Make the empty corner of a pandas table a plain cell: it would be announced as a header."""
    if "body" in context:
        context["body"] = context["body"].replace("<th></th>", "<td></td>")


def leave_out_thebe(app):
    """Disconnect the "live code" extension that Jupyter Book always loads.

    It is never used here, its scripts name another host, and they stop with an error on every page.
    """
    for listener in [one for group in app.events.listeners.values() for one in group]:
        if getattr(listener.handler, "__name__", "") in ("init_thebe_core", "update_thebe_context"):
            app.disconnect(listener.id)


def setup(app):
    leave_out_thebe(app)
    app.connect("config-inited", switch_links)
    app.connect("html-page-context", add_jupyterhub, priority=900)     # after the theme's own buttons
    app.connect("html-page-context", mend_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

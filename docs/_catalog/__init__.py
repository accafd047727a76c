"""Everything the site derives: front matter and snippets in, tables, badges and downloads out.

`read` reads and validates, `render` makes what pages show, `artifacts` writes the files beside the pages,
`diagrams` draws, `site` plugs them into MkDocs, `new` starts a pattern. Nothing here is published.
"""

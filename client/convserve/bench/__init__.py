"""Is it fast here? Measures a server, the same layer in this process, and the bare connection, side by side.

`measurement` measures and says what came out as a document of plain values; `chart` draws such a document, and
`convserve bench` prints one. Nothing in here prints.
"""

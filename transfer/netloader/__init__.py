"""Netloader: a new engine takes its weights from running ones, over `transfer.transports`.

A source has a `Manifest` of what it holds; a client of the same `Identity` fetches it in blocks, from several sources
at once, straight into its own memory, and serves on what it has while the rest still comes. `plan` and `work` decide
(pure), `server` and `client` move bytes on side threads. What the memory is and where sources are found is handed in.

Two words, used so everywhere: a *fingerprint* is the identity of inputs and layout, known before any byte moves; a
*digest* is a sum over the content of bytes.
"""

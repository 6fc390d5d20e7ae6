"""HTTP/1.1 for what many bytes go through: the gateway's server and its connections to engines.

Messages are parsed by llhttp (httptools), written by hand. Everything else here speaks HTTP by aiohttp; a stream of
tokens costs there several times what it costs here (docs/performance.md, benchmarks/gateway).
"""

from semantic_version import Version

class BaseClient:
    server_version: str
    cluster_version: str
    server_version_sem: Version
    cluster_version_sem: Version
    def __init__(self, *, host: str, port: int, protocol: str) -> None: ...
    def _retrieve_version(self) -> None: ...

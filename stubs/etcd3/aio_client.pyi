import io

import aiohttp
from etcd3.baseclient import BaseClient

class AioClient(BaseClient):
    session: aiohttp.ClientSession
    def call_rpc(
        self,
        method: str,
        data: bytes | io.BytesIO | None = ...,
        stream: bool = ...,
        encode: bool = ...,
        *,
        raw: bool,
        timeout: aiohttp.ClientTimeout,
        headers: dict[str, str],
    ) -> aiohttp.client._RequestContextManager: ...

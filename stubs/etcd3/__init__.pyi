from etcd3.aio_client import AioClient as AioClient

"""The node daemon: owns every physical device page of its host and lets engines at them under the fence only.

`__main__` starts it, `node` is its one state and loop, `device` a device with its pages, `engines` the watched
processes, `session` one connection, `keeper` the journal's writer, `view` and `publisher` its two sides to etcd.
"""

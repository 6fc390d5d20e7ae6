"""vNPU's coordinator: decides which engine's memory is on the device, and fronts the engines for clients.

`core` decides (pure), `store` is etcd, `runtime` and `effects` connect the two; `gateway` and `admin` are the HTTP
sides; `cli` holds the commands. Data goes straight through: event -> inbox -> `Scheduler.handle` -> commands ->
`effects.perform` -> etcd -> engine agent -> node daemon -> device -> residency key -> event.
"""

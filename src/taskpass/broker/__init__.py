"""The verbs of the broker, one file each: decide, record, act, confirm.

Every verb is a plain synchronous function that takes the ``Broker`` (its ports) first. It runs in a thread; sockets and
streams are served elsewhere. No verb reads a clock, makes an id or touches a driver except through a port.
"""

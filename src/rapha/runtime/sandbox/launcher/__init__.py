"""The process that holds one sandbox: it stages, starts, watches, ends and collects.

Single-threaded and built from the standard library's light half, so that it starts in tens of milliseconds
and so that fork, mount namespaces and death signals mean what they say.
"""

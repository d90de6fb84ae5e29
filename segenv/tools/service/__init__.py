"""A tool behind HTTP: many processes share its model, its encodings and its GPU.

`wire` is the format of what is sent, `client` the tool as its users see it, `server` the service and `batches` the
thread in which it works. Images, masks and logits are sent by the hash of their content, and their content only where
the service does not know it: a state is a value here as everywhere, and any state that was seen can be branched.
"""

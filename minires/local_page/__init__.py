"""A page in the browser that only this machine can open: its server, and what all such pages share."""

"""Flower's part in a run between machines: it carries bytes, and opens none of them.

====================  ==========================================================================
`superlink.py`        the server's processes of Flower
`supernode.py`        a site's process of Flower
`reverse_proxy.py`    the one port that other machines can reach
`server_app.py`       relay between the coordinator's socket and Flower's grid
`client_app.py`       hands a message to the resident site and brings back the reply
`local_socket.py`     a unix socket that only our own processes can use
`subprocesses.py`     child processes that end with their parent
`flwr_commands.py`    several ``flwr`` commands in one process
====================  ==========================================================================
"""

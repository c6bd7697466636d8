"""vLLM as trl builds and feeds it: the link, the client of a server, generation one step off."""

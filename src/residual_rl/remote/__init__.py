"""Policies over the network: protocols, clients and servers."""

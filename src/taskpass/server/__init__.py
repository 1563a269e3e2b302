"""The sockets' side of the broker: methods and the shapes of their answers, for agents and, apart from them,
for people.
"""

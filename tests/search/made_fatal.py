"""An agent that ends its process."""

import os

from agents.base import Agent


class Fatal(Agent):
    """Ends the process when it is asked."""

    def _act(self, observations, seeds):
        os._exit(9)

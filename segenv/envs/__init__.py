"""Gymnasium environments: thin shells over `segenv.mdp.SegMDP`, registered by `import segenv`."""

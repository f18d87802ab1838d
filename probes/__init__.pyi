from .features import features as features

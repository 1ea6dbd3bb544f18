"""What the tests of training share."""

from latentswap.train.bank import BankConfig

BANK = BankConfig(people=20, views=2, seed=4)

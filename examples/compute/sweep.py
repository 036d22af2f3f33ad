"""A sweep over parameters, on this machine or, with an address, on a cluster:  python sweep.py [HOST:PORT]

How long does a gambler last who bets one coin at a time, by what they bring and by their chance to win?
"""

import random
import sys
from statistics import mean

import cortex


def rounds_until_ruin(coins, chance, games=200, rounds_max=5_000):
    dice = random.Random(f"{coins} {chance}")  # the same numbers wherever, and however often, it runs
    return mean(one_game(dice, coins, chance, rounds_max) for _ in range(games))


def one_game(dice, coins, chance, rounds_max):
    for played in range(rounds_max):
        if coins == 0:
            return played
        coins += 1 if dice.random() < chance else -1
    return rounds_max


if __name__ == "__main__":
    settings = [(coins, chance) for coins in (5, 10, 20) for chance in (0.3, 0.4, 0.45)]
    with cortex.Client(*sys.argv[1:2]) as client:
        for (coins, chance), rounds in zip(settings, client.starmap(rounds_until_ruin, settings)):
            print(f"{coins:3} coins, {chance:.0%}: {rounds:.1f} rounds")
        longest = client.submit(rounds_until_ruin, coins=40, chance=0.48)
        print(f"and 40 coins, 48%: {longest.result():.1f} rounds")

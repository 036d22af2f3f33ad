"""Primes, counted by trial division: see cortex_config.yaml."""


def cortex_function(start, count=10_000):
    return sum(is_prime(number) for number in range(start, start + count))


def is_prime(number):
    if number < 2:
        return False
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))

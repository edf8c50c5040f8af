"""Which birds there are: combinations of parts, so that no single part gives a class away.

A species is one value per *gene* (crown colour, beak shape, wing bars, …). Species come in families
whose members differ from a sibling in two genes, and every value is shared by at least two species
(from eight species on), mostly across families: to tell two birds apart one has to look at the
right two parts.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from protofast.data.randomness import uniform

_SPECIES = 9  # purpose of these random numbers; see randomness.py
MAX_CLASSES = 500

# Gene, its values, and how easily it is seen at some hundred pixels: colours are, shapes less so.
GENES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("crown", ("red", "black", "yellow", "blue", "chestnut", "white"), 2.5),
    ("mantle", ("olive", "slate", "brown", "black", "teal"), 3.0),
    ("breast", ("orange", "white", "yellow", "rose", "grey"), 2.5),
    ("pattern", ("plain", "spotted", "streaked", "banded"), 1.5),
    ("wing", ("plain", "barred", "patched"), 2.5),
    ("crest", ("none", "pointed", "tufted"), 1.5),
    ("tail", ("square", "forked", "long", "fan"), 1.5),
    ("beak", ("cone", "needle", "dagger", "curved", "hooked"), 1.0),
    ("face", ("plain", "ringed", "masked", "browed"), 1.0),
    ("bands", ("none", "tip", "bands"), 2.0),
    ("belly", ("white", "cream", "grey"), 1.0),
    ("bill", ("dark", "orange", "yellow"), 1.0),
    ("legs", ("dark", "orange", "pink"), 0.5),
    ("rump", ("plain", "white", "yellow"), 0.5),
)
GENE_NAMES = tuple(name for name, _, _ in GENES)
_VISIBILITY = np.array([weight for _, _, weight in GENES])
_VALUES = np.array([len(values) for _, values, _ in GENES])
_LEAST_DIFFERENCE = 3.5  # summed visibility of the genes in which two species differ, at least
_FAMILY = 4  # species per family
_ATTEMPTS = 200

Genome = npt.NDArray[np.int64]  # [genes] positions in each gene's values
Species = dict[str, str]  # gene -> value

_NOUNS = {
    "cone": "finch",
    "needle": "warbler",
    "dagger": "starling",
    "curved": "creeper",
    "hooked": "shrike",
}
# Words in brackets are for want of a better one: they say that something is not there.
_ADJECTIVES: dict[str, dict[str, str] | str] = {
    "crown": "{}-crowned",
    "mantle": "{}-backed",
    "breast": "{}-breasted",
    "pattern": {
        "plain": "(plain-breasted)",
        "spotted": "spotted",
        "streaked": "streaked",
        "banded": "collared",
    },
    "wing": {"plain": "(plain-winged)", "barred": "bar-winged", "patched": "patch-winged"},
    "crest": {"none": "(smooth-headed)", "pointed": "crested", "tufted": "tufted"},
    "tail": {
        "square": "(short-tailed)",
        "forked": "fork-tailed",
        "long": "long-tailed",
        "fan": "fan-tailed",
    },
    "face": {
        "plain": "(plain-faced)",
        "ringed": "spectacled",
        "masked": "masked",
        "browed": "browed",
    },
    "bands": {"none": "(plain-tailed)", "tip": "white-tipped", "bands": "band-tailed"},
    "belly": {
        "white": "(white-bellied)",
        "cream": "(cream-bellied)",
        "grey": "(grey-bellied)",
    },
    "bill": {"dark": "(dark-billed)", "orange": "orange-billed", "yellow": "yellow-billed"},
    "legs": {"dark": "(dark-legged)", "orange": "(orange-legged)", "pink": "(pink-legged)"},
    "rump": {"plain": "(plain-rumped)", "white": "(white-rumped)", "yellow": "(yellow-rumped)"},
}


def choose_species(classes: int, seed: int) -> list[Species]:
    """The species of a world of birds.

    Args:
        classes: How many, from 2 to 500.
        seed: Which world.

    Returns:
        One value per gene and species. Any two species differ in at least two genes that are well
        visible, each but a family's founder differs in exactly two from another one, and from eight
        species on every value that occurs occurs at least twice.
    """
    if not 2 <= classes <= MAX_CLASSES:
        raise ValueError(f"classes must be in 2 … {MAX_CLASSES}, got {classes}")
    for attempt in range(_ATTEMPTS):
        genomes = _attempt(classes, seed, attempt)
        if genomes is not None:
            return [
                {name: values[gene] for (name, values, _), gene in zip(GENES, genome, strict=True)}
                for genome in genomes
            ]
    raise AssertionError(f"no world of {classes} species was found for seed {seed}")


def name_species(species: list[Species]) -> list[str]:
    """A name for each species, made of parts that no other of the same noun has together."""
    names: list[str] = []
    for own in species:
        rivals = [other for other in species if other is not own and other["beak"] == own["beak"]]
        names.append(" ".join([*_distinguishing_words(own, rivals), _NOUNS[own["beak"]]]))
    return names


def _distinguishing_words(own: Species, rivals: list[Species]) -> list[str]:
    """The fewest words, two at least, of which no rival deserves all."""
    words = {gene: _adjective(gene, own[gene]) for gene in _ADJECTIVES}
    visibility = dict(zip(GENE_NAMES, _VISIBILITY, strict=True))

    def dullness(genes: tuple[str, ...]) -> float:
        return sum(10.0 * (words[g][0] == "(") - float(visibility[g]) for g in genes)

    for count in range(2, len(words) + 1):
        unique = [
            genes
            for genes in combinations(words, count)
            if not any(all(other[g] == own[g] for g in genes) for other in rivals)
        ]
        if unique:
            brightest = min(map(dullness, unique))
            best = [genes for genes in unique if dullness(genes) <= brightest]
            # Equally good names: spread the choice, so that different parts get named.
            chosen = best[sum(map(ord, "".join(own.values()))) % len(best)]
            return [words[gene].strip("()") for gene in chosen]
    raise AssertionError("two species are the same")


def _adjective(gene: str, value: str) -> str:
    pattern = _ADJECTIVES[gene]
    return pattern.format(value) if isinstance(pattern, str) else pattern[value]


def _attempt(classes: int, seed: int, attempt: int) -> Genome | None:
    """Genomes [classes, genes], or None if the dice fell badly."""
    # Few species use few values of each gene, so that values are shared.
    used = np.minimum(_VALUES, max(2, -(-classes // 3)))
    values = [
        np.argsort(uniform(int(_VALUES[g]), _SPECIES, seed, attempt, 0, g)[0], kind="stable")
        for g in range(len(GENES))
    ]
    values = [ordered[:count] for ordered, count in zip(values, used, strict=True)]
    families = -(-classes // _FAMILY)
    share = classes >= 8
    genomes = _founders(families, values, seed, attempt)
    if families > 1 and _least_differences(genomes) < _LEAST_DIFFERENCE:
        return None
    for number in range(families, classes):
        siblings = np.arange(number % families, number, families)
        for retry in range(50):
            dice = uniform(5, _SPECIES, seed, attempt, 2 + number, retry)[0]
            genome = _mutated(genomes[siblings[int(dice[0] * len(siblings))]], dice[1:], values)
            differ = genomes != genome
            # When values are to be shared, one that no species has yet is of no use.
            known = not share or not differ.all(0).any()
            if known and (differ @ _VISIBILITY).min() >= _LEAST_DIFFERENCE:
                genomes = np.concatenate([genomes, genome[None]])
                break
        else:
            return None
    return genomes if not share or _shared(genomes) else None


def _founders(families: int, values: list[Genome], seed: int, attempt: int) -> Genome:
    """One genome per family [families, genes]; no gene has the same value in all of them."""
    dice = uniform(families * len(GENES), _SPECIES, seed, attempt, 1)[0].reshape(families, -1)
    genomes = np.empty((families, len(GENES)), dtype=np.int64)
    for gene, allowed in enumerate(values):
        genomes[:, gene] = allowed[np.floor(dice[:, gene] * len(allowed)).astype(np.int64)]
        if families > 1 and (genomes[:, gene] == genomes[0, gene]).all():
            genomes[gene % families, gene] = allowed[allowed != genomes[0, gene]][0]
    return genomes


def _least_differences(genomes: Genome) -> float:
    """How visibly the two most similar genomes differ."""
    differ = (genomes[:, None] != genomes[None]) @ _VISIBILITY
    return float(np.min(differ[np.triu_indices(len(genomes), 1)], initial=np.inf))


def _mutated(parent: Genome, dice: npt.NDArray[np.float64], values: list[Genome]) -> Genome:
    """The parent with two genes changed to others of the given values."""
    child = parent.copy()
    first = int(dice[0] * len(GENES))
    second = (first + 1 + int(dice[1] * (len(GENES) - 1))) % len(GENES)
    for gene, die in ((first, dice[2]), (second, dice[3])):
        allowed = values[gene][values[gene] != parent[gene]]
        child[gene] = allowed[int(die * len(allowed))]
    return child


def _shared(genomes: Genome) -> bool:
    """Whether every value that occurs occurs in at least two species."""
    return all(
        (np.bincount(genomes[:, gene])[genomes[:, gene]] >= 2).all() for gene in range(len(GENES))
    )

"""Digests as words to read aloud: the word list of PGP, two words a byte value.

Two-syllable words stand at even positions, three-syllable words at odd ones. A word
that is left out, said twice, or swapped with its neighbour is therefore noticed.

Source:
    P. Juola, P. Zimmermann: Whole-Word Phonetic Distances and the PGPfone Alphabet
    (1996); the list as PGP has had it since, and as Magic Wormhole ships it. There is
    no package that has the list and little else, so the list is here.
"""

from collections.abc import Iterator

from bridge.errors import ConfigError

_EVEN = """
aardvark absurd accrue acme adrift adult afflict ahead aimless algol allow alone ammo
ancient apple artist assume athens atlas aztec baboon backfield backward banjo beaming
bedlamp beehive beeswax befriend belfast berserk billiard bison blackjack blockade
blowtorch bluebird bombast bookshelf brackish breadline breakup brickyard briefcase
burbank button buzzard cement chairlift chatter checkup chisel choking chopper
christmas clamshell classic classroom cleanup clockwork cobra commence concert cowbell
crackdown cranky crowfoot crucial crumpled crusade cubic dashboard deadbolt deckhand
dogsled dragnet drainage dreadful drifter dropper drumbeat drunken dupont dwelling
eating edict egghead eightball endorse endow enlist erase escape exceed eyeglass
eyetooth facial fallout flagpole flatfoot flytrap fracture framework freedom frighten
gazelle geiger glitter glucose goggles goldfish gremlin guidance hamlet highchair
hockey indoors indulge inverse involve island jawbone keyboard kickoff kiwi klaxon
locale lockup merit minnow miser mohawk mural music necklace neptune newborn nightbird
oakland obtuse offload optic orca payday peachy pheasant physique playhouse pluto
preclude prefer preshrunk printer prowler pupil puppy python quadrant quiver quota
ragtime ratchet rebirth reform regain reindeer rematch repay retouch revenge reward
rhythm ribcage ringbolt robust rocker ruffled sailboat sawdust scallion scenic
scorecard scotland seabird select sentence shadow shamrock showgirl skullcap skydive
slingshot slowdown snapline snapshot snowcap snowslide solo southward soybean spaniel
spearhead spellbind spheroid spigot spindle spyglass stagehand stagnate stairway
standard stapler steamship sterling stockman stopwatch stormy sugar surmount suspense
sweatband swelter tactics talon tapeworm tempest tiger tissue tonic topmost tracker
transit trauma treadmill trojan trouble tumor tunnel tycoon uncut unearth unwind
uproot upset upshot vapor village virus vulcan waffle wallet watchword wayside willow
woodlark zulu
"""
_ODD = """
adroitness adviser aftermath aggregate alkali almighty amulet amusement antenna
applicant apollo armistice article asteroid atlantic atmosphere autopsy babylon
backwater barbecue belowground bifocals bodyguard bookseller borderline bottomless
bradbury bravado brazilian breakaway burlington businessman butterfat camelot
candidate cannonball capricorn caravan caretaker celebrate cellulose certify
chambermaid cherokee chicago clergyman coherence combustion commando company component
concurrent confidence conformist congregate consensus consulting corporate corrosion
councilman crossover crucifix cumbersome customer dakota decadence december decimal
designing detector detergent determine dictator dinosaur direction disable disbelief
disruptive distortion document embezzle enchanting enrollment enterprise equation
equipment escapade eskimo everyday examine existence exodus fascinate filament finicky
forever fortitude frequency gadgetry galveston getaway glossary gossamer graduate
gravity guitarist hamburger hamilton handiwork hazardous headwaters hemisphere
hesitate hideaway holiness hurricane hydraulic impartial impetus inception indigo
inertia infancy inferno informant insincere insurgent integrate intention inventive
istanbul jamaica jupiter leprosy letterhead liberty maritime matchmaker maverick
medusa megaton microscope microwave midsummer millionaire miracle misnomer molasses
molecule montana monument mosquito narrative nebula newsletter norwegian october ohio
onlooker opulent orlando outfielder pacific pandemic pandora paperweight paragon
paragraph paramount passenger pedigree pegasus penetrate perceptive performance
pharmacy phonetic photograph pioneer pocketful politeness positive potato processor
provincial proximate puberty publisher pyramid quantity racketeer rebellion recipe
recover repellent replica reproduce resistor responsive retraction retrieval
retrospect revenue revival revolver sandalwood sardonic saturday savagery scavenger
sensation sociable souvenir specialist speculate stethoscope stupendous supportive
surrender suspicious sympathy tambourine telephone therapist tobacco tolerance
tomorrow torpedo tradition travesty trombonist truncated typewriter ultimate undaunted
underfoot unicorn unify universe unravel upcoming vacancy vagabond vertigo virginia
visitor vocalist voyager warranty waterloo whimsical wichita wilmington wyoming
yesteryear yucatan
"""
_LISTS = tuple(words.split() for words in (_EVEN, _ODD))
_VALUES = tuple({word: value for value, word in enumerate(one)} for one in _LISTS)
_HEX_DIGITS = frozenset("0123456789abcdef")
_DIGEST_BYTES = 32
_LINE_WORDS = 4


def words_of(digest: str) -> str:
    """Return a digest as words, such as `topmost istanbul pluto vagabond`.

    Args:
        digest: In hex, of any even length.
    """
    data = bytes.fromhex(digest)
    return " ".join(_LISTS[place % 2][value] for place, value in enumerate(data))


def lines_of(digest: str) -> Iterator[str]:
    """Yield the words of a digest in lines of four, as they are read aloud."""
    words = words_of(digest).split()
    for start in range(0, len(words), _LINE_WORDS):
        yield " ".join(words[start : start + _LINE_WORDS])


def parse_digest(text: str) -> str:
    """Return a SHA-256 in lower-case hex that a person gave in hex or as words.

    Raises:
        ConfigError: The text is neither, or a word is unknown or at the wrong place.
    """
    parts = text.lower().split()
    joined = "".join(parts)
    if len(joined) == 2 * _DIGEST_BYTES and _HEX_DIGITS.issuperset(joined):
        return joined
    if len(parts) != _DIGEST_BYTES:
        raise _bad(f"found {len(parts)} words")
    values = bytearray()
    for place, word in enumerate(parts):
        value = _VALUES[place % 2].get(word)
        if value is None:
            is_known = word in _VALUES[1 - place % 2]
            reason = (
                "is a word for a place beside it: a word was left out, said twice or "
                "swapped"
                if is_known
                else "is not in the list"
            )
            raise _bad(f"word {place + 1}, {word!r}, {reason}")
        values.append(value)
    return values.hex()


def _bad(found: str) -> ConfigError:
    return ConfigError(
        f"expected a SHA-256 as 64 hex digits or as {_DIGEST_BYTES} words ({found})",
        rule="hierarchy.words",
    )

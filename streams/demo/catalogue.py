"""The items of the synthetic world. Every topic has things to buy in the shop, videos and news articles."""

import random
from typing import NamedTuple


class Thing(NamedTuple):
    """An item of the world."""

    platform: str
    id: str
    title: str
    categories: tuple[str, ...]
    topic: str
    subject: int
    """Index of the topic's subject in TOPICS that the item is about."""
    later: bool
    """Whether the item is for owners of the subject. Other items are for people who look for the subject."""


SUBJECTS = 6
# topic: (department, its SUBJECTS subjects; streams.demo.journeys goes through them in this order)
TOPICS: dict[str, tuple[str, str]] = {
    "Trail running": ("Outdoors", "trail shoes|hydration vest|mountain marathon|forest loop|uphill sprint|running poles"),
    "Road cycling": ("Outdoors", "carbon bike|climbing wheels|peloton|alpine pass|cycling jersey|power meter"),
    "Bouldering": ("Outdoors", "climbing shoes|chalk bag|granite boulder|fingerboard|crash pad|overhang"),
    "Camping": ("Outdoors", "ultralight tent|sleeping bag|camp stove|campfire|forest campsite|headlamp"),
    "Sea kayaking": ("Outdoors", "touring kayak|paddle|coastal crossing|dry bag|spray deck|tidal current"),
    "Espresso": ("Kitchen", "espresso machine|burr grinder|milk foam|portafilter|single origin beans|latte art"),
    "Sourdough baking": ("Kitchen", "sourdough starter|proofing basket|rye flour|open crumb|bread oven|scoring blade"),
    "Home cooking": ("Kitchen", "cast iron pan|chef knife|weeknight pasta|slow cooker|stew pot|vegetable curry"),
    "Tea": ("Kitchen", "green tea|teapot|oolong leaves|matcha whisk|tea ceremony|breakfast blend"),
    "Barbecue": ("Kitchen", "charcoal grill|smoked brisket|pulled pork|meat thermometer|dry rub|ember cooking"),
    "Jazz guitar": ("Music", "archtop guitar|chord melody|swing rhythm|jazz standard|tube amplifier|bebop solo"),
    "Piano": ("Music", "digital piano|nocturne|sheet music|concert grand|sight reading|piano sonata"),
    "Vinyl records": ("Music", "turntable|record sleeve|phono cartridge|album pressing|record shop|soul forty-five"),
    "Electronic music": ("Music", "analogue synthesizer|drum machine|modular patch|techno set|sequencer|bass line"),
    "Astronomy": ("Science", "refractor telescope|lunar eclipse|nebula|star atlas|meteor shower|planetary camera"),
    "Robotics": ("Science", "servo motor|robot arm|line follower|microcontroller|walking robot|sensor board"),
    "Gardening": ("Home", "tomato seedlings|raised bed|compost heap|pruning shears|herb garden|watering can"),
    "Woodworking": ("Home", "hand plane|dovetail joint|oak table|workbench|chisel set|wood finish"),
    "Interior design": ("Home", "linen sofa|pendant lamp|small flat|wall colour|oak shelf|mid-century chair"),
    "Chess": ("Games", "chess set|endgame study|opening trap|grandmaster match|chess clock|queen sacrifice"),
    "Board games": ("Games", "strategy game|worker placement|dice tower|family game night|card sleeves|cooperative game"),
    "Photography": ("Arts", "prime lens|tripod|street portrait|long exposure|film camera|golden hour"),
    "Watercolour": ("Arts", "watercolour paper|sable brush|botanical sketch|wet on wet|pigment set|plein air painting"),
    "Yoga": ("Wellbeing", "yoga mat|morning flow|hip opener|breathing exercise|meditation cushion|sun salutation"),
}
# Title forms: the first half is for people who look for the subject, the second half for owners. All shop items are for people who look.
_SHOP = (
    "{A} {w}",
    "{w} for beginners",
    "{A} {w}, {n}-piece set",
    "Professional {w}",
    "{w} with carrying case",
    "{A} {w} in {c}",
    "Compact {w}",
    "{w}, second generation",
)
_VIDEO = (
    "How to choose a {w}",
    "{A} {w}: a first look",
    "{w} explained in {n} minutes",
    "I tried the {w} for {n} days",
    "{w}: five mistakes to avoid",
    "A day with my {w}",
    "Restoring an old {w}",
    "{w}, step by step",
)
_NEWS = (
    "Why the {w} is back",
    "The quiet rise of the {w}",
    "{t}: the {w} of the season",
    "The {a} {w}, reconsidered",
    "{n} lessons from a year with the {w}",
    "What the {w} tells us about {t}",
    "A letter about {t} and the {w}",
    "Inside the world of {t}: the {w}",
)
_FORMS = {"shop": _SHOP, "video": _VIDEO, "news": _NEWS}
_ADJECTIVES = "light|classic|handmade|durable|portable|premium|everyday|vintage|modern|compact|quiet|affordable".split("|")
_COLOURS = "black|sand|forest green|navy|rust|white".split("|")


def catalogue(seed: int, per_platform: int) -> list[Thing]:
    """Return `per_platform` items on each of shop, video and news, with readable titles, spread evenly over the topics, popular items first.

    Ids contain the seed, so catalogues with different seeds share no id.
    """
    r, things = random.Random(seed), []
    topics = list(TOPICS)
    for platform, forms in _FORMS.items():
        seen: set[str] = set()
        while len(seen) < per_platform:
            topic = topics[len(seen) % len(topics)]
            department, words = TOPICS[topic]
            subject, form, adjective = r.randrange(SUBJECTS), r.randrange(len(forms)), r.choice(_ADJECTIVES)
            fields = {"w": words.split("|")[subject], "t": topic.lower(), "n": r.randint(3, 40), "c": r.choice(_COLOURS)}
            title = forms[form].format(A=adjective.capitalize(), a=adjective, **fields)
            title = title[0].upper() + title[1:]
            if title in seen:
                title = f"{title} ({r.choice(_ADJECTIVES)} edition {len(seen)})"
            seen.add(title)
            later = platform != "shop" and form >= len(forms) // 2
            things.append(Thing(platform, f"{platform[0]}{seed}-{len(seen):05d}", title, (department, topic), topic, subject, later))
    return things

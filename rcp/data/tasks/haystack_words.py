"""Words of the generated long prompts. No text of `SLOTS`, `TEMPLATES` or `REPEATED` has a digit or one of `NOUNS`."""

from __future__ import annotations

from rcp.data.tasks import lexicon

REPEATED = (
    "The road is long.",
    "The lake is calm.",
    "The wind is mild.",
    "On we walk.",
    "Over the hill and down again.",
)

TEMPLATES = (
    "{opening}, {who} {act} {place}.",
    "{opening}, {who} {act} {place} {reason}.",
    "{who} {act} {reason}.",
    "{who} {act} {place}.",
    "{who} {said} that {saying}.",
    "{opening}, {other} {said} that {saying}.",
    "{other} {said} that {saying}, {contrast}.",
    "{who} and {other} met {place} {reason}.",
    "{who} {act}.",
)


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split("/")]


_PEOPLE = [f"the {trade}" for trade in lexicon.TRADES]
SLOTS: dict[str, list[str]] = {
    "who": _PEOPLE,
    "other": _phrases("""
        my aunt / his cousin / her uncle / our neighbour / a stranger / the twins / an old friend / the youngest
        child / a passing visitor / the landlady / two students / a retired teacher / my grandmother / the new owner
        / a traveller from abroad / the mayor / some tourists / a distant relative / the whole family / the choir
    """),
    "opening": _phrases("""
        in the morning / late in the evening / after lunch / before breakfast / on the first warm day of the year /
        during the long winter / every other week / once the rain had stopped / shortly before noon / at the close
        of the season / as usual / to everyone's surprise / without much talk / not long ago / for the third time
        that month / in the meantime / some years earlier / when the market was over / by the time the guests left /
        in those days / around sunset / while the others slept / now and then / on the way home
    """),
    "act": _phrases("""
        repaired the garden fence / wrote a long letter / looked for the missing dog / painted the kitchen door /
        carried wood up the stairs / told the same story again / counted the empty bottles / cleaned the windows /
        fed the horses / waited for the last train / made soup for everyone / sold the old wagon / drew a map of the
        valley / read aloud from the newspaper / fixed the broken clock / swept the yard / planted a row of beans /
        lost a pair of gloves / borrowed a ladder / learned a new song / sat down and said nothing / laughed at the
        joke / packed the suitcases / washed the blue shirts / measured the width of the room / asked for directions
        / forgot the shopping list / opened a small shop / stayed awake all night / cut the grass / baked two loaves
        of bread / cleaned the silver spoons / followed the narrow path / put the laundry out to dry / mended the
        fishing nets / argued about the price / took a photograph of the church / picked apples / watched the boats
        / took notes
    """),
    "place": _phrases("""
        near the river / behind the station / at the edge of the forest / in the old town hall / beside the school /
        on the hill above the village / in the back room / under the stone bridge / across the street / by the
        harbour wall / in front of the library / at the far side of the field / close to the border / in the shade
        of an elm / next to the bakery / on the upper floor / along the coast / outside the hospital / in the corner
        of the cellar / not far from the mill / on the north side of the lake / between two tall houses / at the
        foot of the mountain / in the courtyard / inside the greenhouse / around the well / down by the canal / in
        the centre of the square
    """),
    "reason": _phrases("""
        because the shop was closed / since nobody else wanted to / although the weather was bad / so that the
        children could rest / because the road was blocked / even though it was late / as the doctor had advised /
        while the radio was playing / until the lamps went out / since there was little money left / because the
        roof still leaked / as if nothing had happened / although no one had asked / so that there would be enough
        for all / because of the strong wind / in spite of the noise / before the ice began to melt / after a short
        quarrel / for the sake of peace / instead of going home / just as they had agreed / when the bell rang /
        without asking first / with the help of a friend
    """),
    "saying": _phrases("""
        patience is worth more than speed / a good plan saves half the work / most arguments begin with a small
        mistake / the best ideas come during a walk / people remember kindness longer than advice / a quiet street
        is better than a wide one / old tools last longer than new ones / it is hard to teach what one has never
        tried / small towns keep their secrets well / cold winters make warm kitchens / no map shows every path / a
        shared meal settles most quarrels / the first attempt is seldom the best / work goes faster when someone
        sings / it takes years to know a river / reading is the cheapest way to travel / nobody misses what was
        never there / simple food tastes best after a long day / the weather decides more than we admit / every
        habit was once a choice / long meetings rarely change a decision / children notice what adults overlook / a
        clean desk does not mean a clear mind / great changes are quiet at first / it is easier to begin than to
        finish / rules matter less than examples / a broken promise is hard to mend / slow trains show more of the
        country / the truth is often shorter than the story / a garden is never really finished
    """),
    "said": _phrases("""
        said / believed / insisted / used to say / had always thought / told us / agreed / once wrote / noticed /
        knew
    """),
    "contrast": _phrases("""
        but few people live by it / and perhaps that is true / though not everyone agrees / yet the opposite happens
        just as often / and there is some sense in it / but it depends on the day / which sounds simple enough / and
        most of us know it
    """),
}

ADJECTIVES = _words("""
ancient azure bitter bold brave bright calm clever cosmic crimson curious dusty eager early faded fancy fierce frozen
gentle giant golden grand hidden hollow humble jolly lively lonely lucky mellow misty modest noble pale patient plain
polite proud purple quick rapid rare royal rusty scarlet secret shiny silent slender smooth solid sturdy subtle sunny
swift tender tiny vivid wild wise witty young
""")

NOUNS = _words("""
acorn alley altar amulet anchor angel ankle antler anvil apron arch arrow atlas attic badge bagel balcony ballad
balloon bamboo banjo banner barrel basket basin beacon beard beaver beetle bench berry bicycle blanket blossom bonnet
boulder bracelet branch brass brick broom brush bubble bucket buffalo bullet bumper bundle butter button cabin cactus
camel camera candle cannon canoe canvas carpet carriage castle cave cedar chain chalk chapel chariot chest chimney
chisel circus clay cliff cloak clover coal cobra coconut coffee coin collar column comet compass copper coral cotton
couch cradle crater crayon cricket crown crystal curtain cushion cymbal dagger desert diamond dolphin dome donkey
dragon drawer drum duck eagle earring easel echo elbow ember emerald engine fabric falcon feather fern ferry fiddle
flag flame flask flint flute fog folder fork fountain fox frame fridge frog fur furnace galaxy gallery garlic gate
ginger giraffe glacier globe goat goblet gravel guitar hammer hammock handle hanger harp hawk hedge helmet heron hinge
hook horn hotel hut igloo insect iron island ivory jacket jaguar jar jelly jewel jungle juniper kettle keyboard kite
kitten knife knot lantern lava leaf leather lemon lens leopard lever lily lion lizard locket locomotive log lotus
magnet mantle maple marble mask mast meadow medal melon mermaid meteor mirror moat monkey moon mosaic moth motor mud
muffin mug museum nail napkin necklace nest nickel notebook nugget oak oar oasis ocean octopus onion opal orbit
orchard orchid organ otter oven owl paddle palace panda panther parade parcel parrot pasture peacock pearl pebble
pelican pencil penguin pepper petal piano pigeon pillar pillow pine pipe pirate planet plate plaza plum pocket pollen
pond poppy portrait pottery powder prairie prism puppet puzzle pyramid quartz quilt rabbit radish raft rail rainbow
raven reef ribbon ring robin robot rocket rope ruby rudder saddle sail sandal satin sauce saucer scarf scissors
scooter seal shark shell shield ship shoe shovel siren skate sketch sled slipper snail snow sofa spark sparrow sphere
spider spiral sponge spruce squirrel stable staircase star statue steam steel stool storm stove straw stream sugar
swan sword syrup table tablet tail tapestry teapot telescope temple tent thimble thorn throne thunder tiger timber
toad torch tower toy tractor trail treasure trumpet trunk tulip tunnel turtle twig umbrella urn valve vase vault veil
velvet vessel vest vine violin volcano wallet walnut walrus water wave whale wheat wheel whistle willow wing wolf wool
wreath yacht zebra zipper
""")
"""What keys and variables are called, and what lists of words are made of."""

SURNAMES = _words("""
Abbott Archer Barlow Bishop Blackwood Brook Carver Chapman Coleman Cooper Dalton Dawson Drake Eaton Elliott Farrow
Finch Fletcher Forrest Garland Goodwin Granger Hale Harlow Hartley Hayes Holloway Hudson Ingram Jarvis Keating Kendall
Lambert Langley Lockwood Marlow Mercer Milton Monroe Nash Norwood Osborne Paxton Pemberton Prescott Quinn Radley
Ramsey Redmond Rhodes Sawyer Sheldon Sinclair Stanton Thornton Tucker Underwood Vaughn Walton Warner Weaver Whitaker
Winslow York
""")

INSTRUMENTS = _words("""
accordion bagpipes banjo bassoon cello clarinet cornet drums fiddle flute guitar harmonica harp horn keyboard lute
lyre mandolin marimba oboe organ piano recorder saxophone sitar tambourine trombone trumpet tuba ukulele viola violin
xylophone
""")

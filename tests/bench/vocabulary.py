"""Words and sentence patterns from which ``make_rows`` builds its texts; all of it written for this purpose.

A pattern is a sequence of words and slots. A slot such as ``{noun}`` draws from the list of that name: first
from the row's topic where the topic has one, then from the language. Grammar is kept loose on purpose: what
matters to the benchmark is that texts have the lengths, letters and repetitions of real ones.
"""

from typing import NamedTuple


class Language(NamedTuple):
    """One language: its slots by name, its sentences, its questions."""

    share: float
    slots: dict[str, list[str]]
    topics: dict[str, dict[str, list[str]]]
    sentences: list[str]
    questions: list[str]


def _words(text: str) -> list[str]:
    return text.split()


_TIME = _words(
    "today yesterday tomorrow monday tuesday wednesday thursday friday saturday sunday january february march "
    "april may june july august september october november december morning noon evening midnight spring summer "
    "autumn winter easter harvest sunrise sunset weekend holiday"
)
_PEOPLE = _words(
    "Ama Kofi Yaa Kwame Abena Kwabena Akua Kwaku Adwoa Kojo Esi Kwesi Afia Yaw Efua Fiifi Araba Ebo Akosua Kwasi "
    "Mansa Nana Serwaa Boateng Mensah Owusu Asante Osei Appiah Ofori Anna Bruno Clara David Elena Felix Greta Hugo "
    "Ines Jonas Karla Liam Maria Nils Olga Pablo Rosa Stefan Tania Urs Vera Walter Xenia Yusuf Zoe Amina Bilal "
    "Chidi Dalia Emeka Fatou Gamal Halima Idris Jamila Kamau Leila Musa Njeri Omar Precious Rashid Salma Tendai "
    "Wanjiru Zainab Arjun Divya Harish Kavya Mohan Priya Ravi Sunita Chen Haruto Jin Mei Sora Yuki Ling Minh"
)
_PLACES = _words(
    "Accra Kumasi Tamale Takoradi Tema Cape-Coast Sunyani Koforidua Ho Wa Bolgatanga Obuasi Techiman Winneba Elmina "
    "Axim Keta Aburi Mampong Ejura Lagos Ibadan Abuja Kano Lomé Cotonou Abidjan Dakar Bamako Nairobi Mombasa Kampala "
    "Kigali Arusha Lusaka Harare Windhoek Gaborone Maputo Berlin Hamburg Leipzig Bremen Zürich Basel Graz Linz Paris "
    "Lyon Nantes Lille Rouen Genève Madrid Sevilla Lisbon Porto Rome Turin Oslo Bergen Malmö Turku Tallinn Riga "
    "Kraków Prague Delhi Pune Chennai Lima Quito Bogotá Santiago Toronto Boston Denver Austin"
)
_NUMBERS = [str(number) for number in range(2, 1000)]

_ENGLISH_ADJECTIVES = _words(
    "small large old new early late quiet loud bright dark cheap costly fresh dry wet warm cold heavy light narrow wide "
    "deep shallow gentle rough smooth sharp blunt clean dusty simple complex steady sudden common rare local foreign "
    "private public safe risky useful broken empty full hidden visible patient hasty careful careless honest clever "
    "humble proud modern ancient green yellow wooden metal plastic round square long short strong weak soft hard "
    "seasonal weekly daily yearly reliable doubtful generous strict friendly distant nearby rural urban coastal northern "
    "southern eastern western upper lower inner outer"
)
_ENGLISH_VERBS = _words(
    "carries repairs measures compares replaces improves weakens supports explains describes follows avoids prevents "
    "reduces increases protects damages collects delivers stores shares divides joins separates covers reveals changes "
    "keeps loses finds counts weighs tests checks records reports answers asks teaches learns plans builds paints "
    "washes dries heats cools opens closes lifts lowers pushes pulls moves stops starts finishes delays speeds slows "
    "guards cleans orders sorts labels marks cuts folds mixes pours fills empties borrows lends buys sells rents "
    "inspects approves rejects repeats remembers forgets"
)
_ENGLISH_ADVERBS = _words(
    "slowly quickly often rarely usually sometimes carefully badly well again twice early together alone quietly "
    "openly safely hardly nearly exactly roughly mostly partly fully barely gladly firmly freely evenly plainly"
)
_ENGLISH_LINKS = _words("because although while before after until unless whenever since so but and")
_ENGLISH_PREPOSITIONS = _words(
    "near behind beside above below across inside outside around against beyond through towards under over without with"
)

_ENGLISH_TOPICS = {
    "kitchen": _words(
        "pot pan stew soup rice yam cassava plantain pepper onion ginger garlic oil flour dough oven stove ladle knife "
        "board bowl plate cup kettle recipe sauce salt sugar spice fish chicken bean groundnut okra tomato spinach bread "
        "butter milk cheese market cook guest meal"
    ),
    "farm": _words(
        "field soil seed maize millet cocoa harvest tractor hoe plough fence barn goat cow sheep hen rooster pig well pump "
        "canal rain drought weed compost manure farmer labourer basket sack silo orchard mango orange palm coconut nursery "
        "seedling pest beetle hedge pasture"
    ),
    "health": _words(
        "nurse doctor clinic patient fever malaria vaccine tablet dose bandage wound pulse heart lung liver kidney bone "
        "muscle nerve skin tooth gum eye ear throat cough headache allergy diet exercise sleep ward surgeon midwife mother "
        "infant scale chart syringe thermometer ambulance"
    ),
    "school": _words(
        "teacher pupil lesson chalk board desk notebook pencil ruler fraction decimal angle triangle circle equation "
        "paragraph essay grammar spelling library shelf atlas map globe experiment beaker magnet circuit battery planet "
        "moon history king treaty exam grade uniform bell playground headmaster parent"
    ),
    "trade": _words(
        "shop stall price receipt invoice ledger budget loan interest bank coin note customer seller buyer contract "
        "warehouse crate lorry port customs tariff profit loss stock share tax audit scale bargain discount deposit rent "
        "lease partner supplier brand parcel cloth bead leather"
    ),
    "football": _words(
        "goal keeper striker defender midfielder referee whistle pitch corner penalty pass dribble header league cup final "
        "coach bench captain jersey boot stadium crowd anthem ticket season transfer injury training drill tackle offside "
        "draw victory defeat supporter trophy manager academy scout"
    ),
    "weather": _words(
        "storm cloud thunder lightning wind breeze fog dew frost hail shower flood river bank bridge dam lake tide wave "
        "current delta valley hill ridge peak forest savanna desert dune horizon sun shade heat humidity pressure forecast "
        "station gauge balloon satellite compass"
    ),
    "transport": _words(
        "bus taxi bicycle motorbike engine gear brake clutch wheel tyre axle bolt spanner garage mechanic driver passenger "
        "road lane roundabout signal bridge ferry canoe harbour train rail platform timetable luggage suitcase passport "
        "airport runway pilot cargo container fuel filter mirror headlamp"
    ),
    "computing": _words(
        "program function variable loop list table index query server client packet cable router screen keyboard mouse "
        "printer folder file backup password account message browser page link image pixel sensor robot motor chip memory "
        "disk thread process bug patch release manual"
    ),
    "home": _words(
        "roof wall door window lock key ceiling floor carpet mat curtain lamp bulb socket wire tap pipe drain bucket broom "
        "mop soap towel mattress pillow blanket wardrobe drawer mirror clock shelf chair stool table garden gate veranda "
        "neighbour landlord tenant carpenter plumber"
    ),
}

_ENGLISH = Language(
    share=0.76,
    slots={
        "adj": _ENGLISH_ADJECTIVES,
        "verb": _ENGLISH_VERBS,
        "adv": _ENGLISH_ADVERBS,
        "link": _ENGLISH_LINKS,
        "prep": _ENGLISH_PREPOSITIONS,
        "time": _TIME,
        "name": _PEOPLE,
        "place": _PLACES,
        "number": _NUMBERS,
    },
    topics={topic: {"noun": nouns} for topic, nouns in _ENGLISH_TOPICS.items()},
    sentences=[
        "The {adj} {noun} {adv} {verb} one {noun} {prep} the {noun}.",
        "{name} {verb} the {noun} {prep} {place} {link} a {adj} {noun} {verb} it.",
        "In {place} every {noun} with {number} {adj} {noun} marks {verb} the {noun} {adv}.",
        "Around {time} {name} and {name} {adv} moved {number} of the {noun} pieces.",
        "A {noun} that {verb} its {adj} {noun} {verb} more than a {noun} would.",
        "{adv}, {name} says, no {noun} {verb} any {adj} {noun} {prep} {place}.",
        "Look {prep} the {noun}: {number} {adj} {noun} parts, {number} {noun} parts, nothing {adj}.",
        "{link} the {noun} {verb} {name}, the {adj} {noun} in {place} {verb} nobody.",
        "By {time} this {adj} {noun} {verb} {adv} {link} {name} {verb} another {noun}.",
        "Each {noun} cost {number}, each {adj} {noun} {number}, and {name} {adv} paid.",
        "{place} has {adj} {noun} rules; {place} {verb} its {noun} {adv}.",
        "{name} from {place} {verb} {adj} {noun} work, {adj} {noun} work and the {noun}.",
        "With {adj} hands {name} {verb} {noun} after {noun} {link} {time} comes.",
        "Not one {noun} {prep} {place} {verb} {noun} number {number} {adv}.",
    ],
    questions=[
        "{name} from {place} keeps a {adj} {noun} and {number} {noun} items. How does one {noun} {adv} {verb} it {prep} {time}?",
        "Why would a {adj} {noun} in {place} need {number} {adj} {noun} parts {link} {name} {verb} the {noun}?",
        "Explain to {name} what the {adj} {noun} {prep} {place} {verb}, {link} {number} {noun} pieces are {adj}.",
        "At {time} the {noun} of {name} {verb} {number} {adj} {noun} boxes. Which {noun} {verb} {place}?",
        "Compare a {adj} {noun} from {place} and a {adj} {noun} from {place} for {name}, who {verb} {number}.",
        "Write {number} words about how {name} {adv} {verb} the {adj} {noun} {prep} a {noun} in {place}.",
    ],
)

_GERMAN = Language(
    share=0.08,
    slots={
        "adj": _words(
            "kleine große alte neue frühe späte leise laute helle dunkle billige teure frische trockene nasse warme kalte "
            "schwere leichte schmale breite tiefe flache sanfte raue glatte scharfe saubere staubige einfache seltene "
            "fremde sichere nützliche kaputte leere volle sichtbare geduldige ehrliche kluge stolze moderne grüne gelbe "
            "hölzerne runde lange kurze starke schwache weiche harte tägliche jährliche freundliche ferne nahe ländliche"
        ),
        "noun": _words(
            "Schule Küche Straße Brücke Tür Mühle Wiese Ernte Kuh Ziege Wolke Welle Küste Insel Werkstatt Schraube Bremse "
            "Lampe Leiter Bürste Decke Tasche Flasche Pfanne Suppe Zwiebel Kartoffel Birne Pflaume Rechnung Steuer Bank "
            "Münze Ware Kiste Reise Karte Fähre Bahn Linie Klasse Prüfung Aufgabe Lösung Formel Tabelle Datei Seite Frage "
            "Antwort Krankheit Impfung Wunde Lunge Ärztin Lehrerin Bäuerin Händlerin Nachbarin Trainerin Mannschaft"
        ),
        "verb": _words(
            "trägt repariert misst vergleicht ersetzt verbessert stützt erklärt beschreibt meidet schützt sammelt liefert "
            "teilt trennt deckt zeigt ändert behält verliert findet zählt wiegt prüft meldet fragt lehrt plant baut malt "
            "wäscht trocknet wärmt kühlt öffnet schließt hebt senkt schiebt zieht stoppt beginnt ordnet schneidet mischt "
            "füllt leiht kauft verkauft mietet"
        ),
        "adv": _words(
            "langsam schnell oft selten meist manchmal sorgfältig wieder gemeinsam allein gern kaum genau etwa"
        ),
        "time": _words(
            "heute gestern morgen montags dienstags freitags abends mittags nachts im-Mai im-Juli im-Winter"
        ),
        "name": _PEOPLE,
        "place": _PLACES,
        "number": _NUMBERS,
    },
    topics={"alltag": {}},
    sentences=[
        "Die {adj} {noun} {verb} {adv} die {noun} aus {place}.",
        "{name} {verb} {time} {number} Teile, und die {adj} {noun} {verb} sie {adv}.",
        "In {place} {verb} keine {noun} die {adj} {noun} von {name}.",
        "Weil die {noun} {adj} Seiten hat, {verb} {name} {adv} eine {noun}.",
        "Eine {noun} kostet {number}, eine {adj} {noun} kostet {number} in {place}.",
        "{adv} {verb} {name} mit {name} die {adj} {noun} bei {place}.",
    ],
    questions=[
        "Warum {verb} {name} in {place} {time} {number} Mal die {adj} {noun} statt einer {noun}?",
        "Erkläre {name}, wie die {adj} {noun} aus {place} {adv} {number} Stück {verb}, ohne {noun}.",
        "{name} hat {number} {noun} Karten aus {place}. Welche {adj} {noun} {verb} {adv} die {noun}?",
    ],
)

_FRENCH = Language(
    share=0.08,
    slots={
        "adj": _words(
            "petite grande vieille nouvelle tardive calme forte claire sombre chère fraîche sèche humide chaude froide lourde "
            "légère étroite large profonde douce lisse propre simple rare locale étrangère sûre utile vide pleine cachée "
            "visible patiente honnête fière moderne ancienne verte jaune ronde carrée longue courte solide faible molle dure "
            "quotidienne généreuse stricte lointaine voisine rurale côtière"
        ),
        "noun": _words(
            "école cuisine rue porte fenêtre clé lampe table chaise armoire maison cour forêt rivière colline vallée plage "
            "tempête pluie neige récolte ferme vache chèvre poule graine racine feuille mangue orange tomate soupe sauce "
            "recette farine monnaie banque facture dette vente boutique caisse route voiture roue pompe gare valise carte "
            "leçon règle craie page phrase somme équation réponse fièvre plaie dose infirmière équipe balle victoire saison"
        ),
        "verb": _words(
            "porte répare mesure compare remplace améliore soutient explique décrit évite protège récolte livre garde partage "
            "sépare couvre montre change perd trouve compte pèse vérifie annonce demande enseigne prépare construit peint "
            "lave sèche chauffe refroidit ouvre ferme lève baisse pousse tire arrête commence range coupe mélange remplit "
            "prête achète vend loue"
        ),
        "adv": _words(
            "lentement vite souvent rarement parfois soigneusement encore ensemble volontiers presque exactement"
        ),
        "time": _words(
            "aujourd'hui hier demain lundi mardi jeudi samedi en-mars en-juin en-hiver le-matin le-soir"
        ),
        "name": _PEOPLE,
        "place": _PLACES,
        "number": _NUMBERS,
    },
    topics={"quotidien": {}},
    sentences=[
        "La {adj} {noun} {verb} {adv} la {noun} de {place}.",
        "{name} {verb} {number} pièces {time}, puis la {adj} {noun} {verb} {name}.",
        "À {place} aucune {noun} ne {verb} la {adj} {noun} de {name}.",
        "Une {noun} coûte {number}, une {adj} {noun} coûte {number} à {place}.",
        "Quand la {noun} {verb} {adv}, {name} {verb} une {adj} {noun}.",
    ],
    questions=[
        "Pourquoi {name} {verb} à {place} {time} {number} fois la {adj} {noun} sans {noun}?",
        "Explique à {name} comment la {adj} {noun} de {place} {verb} {adv} {number} morceaux de {noun}.",
        "{name} garde {number} fiches à {place}. Quelle {adj} {noun} {verb} {adv} la {noun}?",
    ],
)

_TWI = Language(
    share=0.08,
    slots={
        "adj": _words(
            "kɛseɛ ketewa tenten tiatia foforɔ dada papa bɔne fɛfɛ tuntum fitaa kɔkɔɔ duru hare hyehyeehye nwunu dɔkɔdɔkɔ "
            "nwene den mmerɛ hahar kronn fĩ ahoɔden bebree kakraa"
        ),
        "noun": _words(
            "efie sukuu nsuo aduane adwuma sika abofra ɔbaa ɔbarima ɔkyerɛkyerɛfoɔ kuro dua kwan nwoma kar boɔ nhwiren afuo "
            "bankye bayerɛ borɔdeɛ kwadu ankaa abɛ kookoo nkateɛ moko gyeene nkyene nam akokɔ aponkye nantwie odwan ɔkraman "
            "agyinamoa anomaa ɔsono ɛpo asubɔnten bepɔ kwaeɛ osuo mframa owia bosome nsoroma anɔpa awia anwummerɛ ayaresabea "
            "aduro yareɛ nipa ɔhene ɔhemmaa asɛm ahemfie dwom asaw bɔɔl ntoma mpaboa kyɛ dan ɛpono mpoma kanea safoa kɛntɛn "
            "sekan kuruwa prɛte bukyia ogya gyabidie nnua adwadifoɔ ɛka boɔden suahunu mmerɛ afe dapɛn ɛda"
        ),
        "verb": _words(
            "kɔ ba di nom hwɛ kan kyerɛ tɔ tɔn yɛ pɛ dɔ sua to dua twa noa hohoro pra sɔre da te gyina nante tu huri frɛ bisa "
            "bua ka boa fa de ma gye hu nya yera hwehwɛ kora sesa siesie bue to-mu soa twe pia hyɛ yi kae werɛ-fi susu bu"
        ),
        "adv": _words(
            "ntɛm brɛoo daa ɛberɛ-biara bio pɛpɛɛpɛ yie kɛse kakra nnɛ ɔkyena ɛnnora seesei akyire kane"
        ),
        "name": _PEOPLE[:30],
        "place": _PLACES[:20],
        "number": _NUMBERS,
    },
    topics={"abrabɔ": {}},
    sentences=[
        "{name} {verb} {noun} {adj} no wɔ {place} {adv}.",
        "{noun} {adj} no {verb} {noun} wɔ {noun} mu, na {name} {verb} {noun}.",
        "Sɛ {name} {verb} {noun} a, {noun} {adj} no {verb} {adv}.",
        "Yɛ{verb} {noun} {number} ne {noun} {adj} {number} firi {place}.",
        "{adv} na {name} ne {name} {verb} {noun} {adj} no.",
        "Ɛyɛ sɛ {noun} biara {verb} {noun} {adj} wɔ {place}.",
    ],
    questions=[
        "Adɛn nti na {name} {verb} {noun} {adj} {number} wɔ {place} {adv}, na {noun} {verb} {noun}?",
        "Kyerɛ {name} sɛdeɛ {noun} {adj} no {verb} {noun} {number} wɔ {place} ansa na {noun} {verb} {adv}.",
        "{name} wɔ {noun} {number} ne {noun} {adj} wɔ {place}. Ɛdeɛn na {noun} {verb} {adv}?",
    ],
)

LANGUAGES: dict[str, Language] = {"en": _ENGLISH, "de": _GERMAN, "fr": _FRENCH, "tw": _TWI}

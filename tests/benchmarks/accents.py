"""Lexical search with and without accent folding: queries as they are spelled, typed without accents, and in English.

    python tests/benchmarks/accents.py [scifact/:train ...]

For each language: how many accented words of the queries find their passage, which has them in another form, and how
many other passages. Each FOLDER:SPLIT is an English BEIR folder, for the nDCG@10 of BM25 and the CPU seconds that
indexing takes: folding should cost nothing there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from searchkit.indexer.lexical import LexicalIndex
from searchkit.metrics import score
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import join_title

# (passage, query): the query is in other words or forms than the passage, and accents decide about most of them.
TEXTS = {
    "french": [
        ("Le théâtre municipal a été rénové l'année dernière par la région.", "rénovations du théâtre"),
        ("La météo annonce des tempêtes de neige sur les sommets des Pyrénées.", "tempête de neige Pyrénées"),
        ("Les élèves du lycée préparent leur épreuve de géographie.", "épreuves de géographie au lycée"),
        ("Une forêt de chênes et de hêtres entoure le château.", "forêts de chêne"),
        ("Le pêcheur répare son filet près de l'étang.", "réparer un filet de pêche"),
        ("Recette du gâteau à la crème et aux pêches.", "gâteaux à la crème"),
        ("L'hôpital recrute des infirmières diplômées pour la nuit.", "infirmière hôpital"),
        ("Le séisme a endommagé plusieurs bâtiments de la cité.", "bâtiment endommagé par un séisme"),
        ("Histoire de la Révolution et des députés de l'Assemblée.", "député de la révolution"),
        ("Le vélo électrique se recharge en trois heures.", "recharger un vélo électrique"),
        ("Les bénévoles ont nettoyé la plage après la marée noire.", "nettoyage de plage marée noire"),
        ("Le musée présente des œuvres de peintres méconnus.", "œuvre de peintre méconnu"),
        ("Le père Noël est passé très tôt cette année.", "Noël"),
        ("Un marché couvert vend des légumes et du café.", "légume du marché"),
        ("La grève des contrôleurs aériens bloque l'aéroport.", "grève à l'aéroport"),
        ("Le maire a marché jusqu'à la côte.", "marcher vers la côte"),
    ],
    "german": [
        ("Die Brücke über den Fluss wird für Fußgänger gesperrt.", "Brücken für Fußgänger"),
        ("Im Frühling blühen die Bäume an der Straße.", "blühender Baum"),
        ("Das Mädchen hört gern Märchen vor dem Schlafen.", "Märchen hören"),
        ("Der Bäcker verkauft Brötchen und süße Kuchen.", "Brötchen vom Bäcker"),
        ("Die Züge nach München fallen wegen Störungen aus.", "Zug nach München"),
        ("Ärzte warnen vor Grippe und Erkältungen im Winter.", "Arzt Erkältung"),
        ("Das Schloss über der Stadt ist ein Museum für Gemälde.", "Gemälde im Schloss"),
        ("Die Größe der Wohnung bestimmt die Höhe der Miete.", "Größe einer Wohnung"),
        ("Störche brüten auf den Dächern des Dorfes.", "Storch auf dem Dach"),
        ("Für die Prüfung üben die Schüler täglich Französisch.", "Französisch üben"),
        ("Käse und Milch kommen von Kühen aus dem Allgäu.", "Käse aus dem Allgäu"),
        ("Die Universität prüft die Anträge der Bewerber.", "Antrag an die Universität prüfen"),
    ],
    "spanish": [
        ("El niño come una piña madura en el jardín.", "niños con piña"),
        ("La estación de autobuses está detrás del teatro clásico.", "estaciones de autobús"),
        ("Los años de sequía dañaron los viñedos de la región.", "viñedo dañado por la sequía"),
        ("El médico explicó la vacunación contra el sarampión.", "médicos y vacunaciones"),
        ("Una canción de cuna en la montaña.", "canciones de montaña"),
        ("El pingüino vive en el océano Antártico.", "pingüinos antárticos"),
        ("La economía creció gracias a la exportación de azúcar.", "exportaciones de azúcar"),
        ("Mañana cerrará la compañía de teléfonos.", "compañías de teléfono"),
        ("El café árabe se sirve con dátiles.", "cafés árabes"),
        ("Los pájaros anidan en los árboles del río.", "árbol con pájaros"),
        ("El español y el francés son lenguas románicas.", "lengua española y francesa"),
        ("La señora diseñó un vestido de algodón.", "diseño de vestidos de algodón"),
    ],
    "none": [  # Polish, for which there is no stemmer
        ("Łódź jest miastem włókniarzy i filmu.", "łódź miasto filmu"),
        ("Dzieci jadły świeże pączki i piły mleko.", "świeże pączki"),
        ("Żółta łódka płynie po jeziorze.", "żółta łódka"),
        ("Zamknięto most na Wiśle w Krakowie.", "most na Wiśle"),
        ("Książka opowiada o królu i smoku.", "książka o smoku"),
        ("Góry Świętokrzyskie są najstarsze w kraju.", "góry świętokrzyskie"),
        ("Źródło wody mineralnej odkryto w Żywcu.", "źródło wody Żywiec"),
        ("Późną nocą ucichł hałas na ulicy.", "hałas nocą"),
    ],
}  # fmt: skip
_LETTERS = str.maketrans({"ß": "ss", "œ": "oe", "ł": "l", "Ł": "L"})
_DIGRAPHS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"})
DEPTH, REPEATS = 100, 3


def unaccented(text: str) -> str:
    """A text as it is typed on a keyboard without accents."""
    marks = unicodedata.normalize("NFD", text.translate(_LETTERS))
    return "".join(character for character in marks if not unicodedata.combining(character))


def measure(folder: Path, language: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Found passages of all accented words, and other passages found with them, by the way the words are typed."""
    index = LexicalIndex(folder, language)
    index.add(enumerate(passage for passage, _ in pairs))
    ways: dict[str, Callable[[str], str]] = {"as spelled": str, "without accents": unaccented}
    if language.startswith("german"):
        ways["ae, oe, ue"] = lambda text: text.translate(_DIGRAPHS)
    results = {}
    for way, typed in ways.items():
        words = [(row, word) for row, (_, query) in enumerate(pairs) for word in query.split() if not word.isascii()]
        hits = [(row, index.search(typed(word), len(pairs), len(pairs))[0].tolist()) for row, word in words]
        found = sum(row in rows for row, rows in hits)
        results[way] = f"{found} of {len(words)}, and {sum(len(rows) for _, rows in hits) - found} others"
    return results


def english(folder: Path, source: str) -> dict[str, dict[str, float]]:
    """nDCG@10 of BM25 over a BEIR folder, and the least CPU seconds of indexing it, with folding and without."""
    corpus, split = source.split(":")
    documents = list(read_corpus(Path(corpus)))
    passages = [(row, join_title(document.title, document.text)) for row, document in enumerate(documents)]
    queries, qrels = read_beir_split(corpus, split)
    seconds: dict[str, list[float]] = {"english": [], "english+fold": []}
    results = {}
    for number in range(REPEATS):
        for language, spent in seconds.items():
            index = LexicalIndex(folder / f"{language}-{number}", language)
            began = time.process_time()
            index.add(passages)
            spent.append(time.process_time() - began)
            run = {}
            for query in queries:
                rows, scores = index.search(query.text, DEPTH, len(documents))
                run[query.id] = {
                    documents[row].id: float(each) for row, each in zip(rows.tolist(), scores, strict=True)
                }
            results[language] = {"ndcg@10": score(run, qrels)[0]["ndcg@10"], "seconds": min(spent)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="FOLDER:SPLIT", help="English BEIR folders")
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for language, pairs in TEXTS.items():
            for name in (language, f"{language}+fold"):
                results[name] = measure(Path(temporary) / name, name, pairs)
        for number, source in enumerate(arguments.sets):
            results[source] = english(Path(temporary) / f"english-{number}", source)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

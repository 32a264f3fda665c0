"""The table of ``words.py`` in German: the same names in the same order, with the same places for what is filled in."""

TITLE = "Pixelkiln"
TAGLINE = "Vom Bilderordner zur LoRA"
UNSET = "Vorgabe"

TABS = {
    "pictures": "1 Bilder",
    "recipe": "2 Rezept",
    "train": "3 Training",
    "compare": "4 Vergleich",
    "prefer": "5 Auswahl",
}
NEXT = {"pictures": "Weiter: Rezept", "train": "Checkpoints vergleichen"}
START, START_ANYWAY, CANCEL = "Training starten", "Trotzdem starten", "Abbrechen"
STARTS_AFTER = "Wird geprüft, startet dann"
SERVER_GONE = "Der Server der Seite antwortet nicht. Starten Sie ihn neu; die Seite ist dann von selbst wieder da."
SKIP = "Zum Inhalt springen"

# Was gezählt wird: eins, mehrere
PICTURES, CAPTIONS, PROMPTS = ("Bild", "Bilder"), ("Bildbeschreibung", "Bildbeschreibungen"), ("Prompt", "Prompts")
OTHER_FILES, PAIRS, RATED, OPTIONS = (
    ("andere Datei", "andere Dateien"),
    ("Paar", "Paare"),
    ("Bewertung", "Bewertungen"),
    ("Option", "Optionen"),
)
CHANGES, STEPS, EPOCHS = ("Änderung", "Änderungen"), ("Schritt", "Schritte"), ("Epoche", "Epochen")

DARK, LANGUAGE = "Hell / dunkel", "English / Deutsch"

NO_FILE, DISK_FAILED = "die Festplatte", "{}: {}; schaffen Sie Platz oder beheben Sie das, dann noch einmal"
INTERNAL_ERROR = (
    "In Pixelkiln ist etwas schiefgegangen; geändert wurde nichts. Das Terminal, in dem die Seite läuft, zeigt den "
    "Traceback: bitte melden Sie ihn."
)

# Bilder
FOLDER = "Bilderordner"
FOLDER_INFO = (
    "Fügen Sie den Pfad eines Ordners ein, oder einer TOML-Datei mit Datensätzen (von uns oder kohya). "
    "Bildbeschreibungen sind die .txt-Dateien neben den Bildern; sie werden beim Tippen gespeichert."
)
OPEN = "Öffnen"
UPLOAD = "Bilder hier ablegen, mit ihren .txt-Beschreibungen; sie werden kopiert"
DEMO = "Demobilder verwenden"
NO_FOLDER = "Geben Sie einen Ordner an, legen Sie oben Bilder ab oder beginnen Sie mit den mitgelieferten Demobildern."
EMPTY_FOLDER = "In diesem Ordner sind keine Bilder (PNG, JPEG, WebP, BMP oder AVIF)."
LATER = "wird noch geprüft: {}"
SET, CAPTION = "Datensatz", "Bildbeschreibung"
COUNTED = "{}, {} mit Bildbeschreibung"
IGNORED = "übergangen: {} ({})"
NO_CAPTION, UNREADABLE, VERY_LARGE, SMALL = "ohne Bildbeschreibung", "unlesbar", "sehr groß", "klein"
DUPLICATE, SAME_AS = "doppelt", "gleich wie {}"
CAPTION_UNREADABLE = "Bildbeschreibung ist kein UTF-8-Text"
TOO_LONG_HERE, NO_TARGET, LEFT_OUT, ALL = "Bildbeschreibung zu lang", "ohne Zielbild", "ausgelassen", "alle"
TARGET_OF = "Zielbild von {}"
NOTHING_HERE = "Dazu passt kein Bild."
TO_FIX = "{}, {} zu prüfen"
ADDED = "Zu {2} hinzugefügt: {0}, {1}."
MORE_REFUSED = "und {} weitere abgelehnt"
CHANGED = "Geändert: {}."
RESTORED = "Wie zuvor: {}."
LEFT_AS_EDITED = " Seitdem geändert und so belassen: {}."
CAPTION_PLACEHOLDER = "Was auf dem Bild zu sehen ist"
FILTER = "Zeigen"
CAPTION_SEARCH, CAPTION_SEARCH_HOW = "Text enthält", 'Wörter, "ein Tag"'
CHOOSE_ALL, CHOOSE_NONE, CHOSEN = "Alle wählen", "Keins", "gewählt"
BULK_TAG, ADD_FIRST, ADD_LAST, TAKE_OUT = "Tags, durch Kommas getrennt", "Vorn einfügen", "Hinten anfügen", "Entfernen"
LEAVE_OUT, TAKE_BACK, MOVED = "Auslassen", "Zurücknehmen", "Verschoben: {}."
PREVIOUS, FOLLOWING, CLOSE, SAVED = "‹", "›", "Schließen", "gespeichert ✓"
OF_TOKENS, CUT = "{} von {} Token", "; der Rest wird abgeschnitten"
ROTATE, ORIGINAL, PAINT, CROP = "Drehen", "Original zurückholen", "Maske malen", "Zuschneiden"
FRAME, FRAME_INFO = "Ausschnitt", "Über das Bild ziehen, oder links, oben, Breite, Höhe in % eingeben."
PAINT_INFO = "Was übermalt ist, beachtet das Training nicht. Nichts übermalt: keine Maske."
SAVE_MASK = "Maske speichern"
ADD = "Mehr Bilder"
CONVERT, CONVERTED = "{} anderer Art als PNG speichern", "Als PNG gespeichert: {}."
REPLACING = "Suchen und ersetzen, in den gewählten Bildbeschreibungen oder in allen"
UNDO_CAPTIONS = "Letzte Änderung der Bildbeschreibungen rückgängig machen"
TRIGGER = "Triggerwort"
TRIGGER_INFO = (
    "Steht beim Training am Anfang jeder Bildbeschreibung. Für eine Person oder einen Gegenstand ein seltenes Wort; "
    "ein Stil kommt ohne aus."
)
FIND, REPLACE, WHOLE_TAGS, REPLACE_ALL, UNDO = "Suchen", "Ersetzen durch", "Nur ganze Tags", "Ersetzen", "Rückgängig"
TAGS = "Häufigste Tags"
BACK, FORWARD = "‹ Zurück", "Mehr ›"
NO_TAGGER = (
    "Ein Tagger schreibt Bildbeschreibungen für Sie. {}. Ein eigener Tagger (model.onnx, selected_tags.csv) gehört "
    "in {}."
)
TAGGING_ENDED = "Das Taggen wurde angehalten; was geschrieben ist, bleibt."
GET_TAGGER = "Tagger holen"
TAG, TAG_AT_LEAST = "Gewählte taggen, oder alle ohne Bildbeschreibung", "Mindestsicherheit"
TAGGING, TAGGED = "Bild {} von {} wird getaggt…", "Geschrieben: {}."
DESCRIBE = "Gewählte oder alle beschreiben, soweit ohne Bildbeschreibung"
READING_CAPTIONER = "Das Beschreibungsmodell wird gelesen…"
TYPED_MEANWHILE = " Ausgelassen: {}, inzwischen beschrieben oder ohne Tag über dem Mindestwert."

# Rezept
GOAL, GOAL_INFO = "Was soll gelernt werden?", "Modell, GPU und dies zusammen wählen das Preset, von dem alles ausgeht."
GOALS = {
    "character": "Eine Figur oder Person", "style": "Ein Stil", "concept": "Gegenstand, Pose oder Kleidung",
    "detail": "Ein Stil mit feinen Details", "preference": "Meine Vorlieben", "depth": "Tiefe aus einem Bild",
    "normal": "Normalen aus einem Bild",
}  # fmt: skip
BASE_MODEL, OTHER_MODEL = "Basismodell", "Basismodell von anderswo"
GET, GET_ONE = "Basismodell holen oder Modellordner hinzufügen", "{} holen"
GET_ABOUT = "{}: {:.1f} GB, Lizenz: {}; von {}"
GET_GATED = " (nur mit Anmeldung beim Hub, wo zuerst die Lizenz anzunehmen ist)"
FETCHING, FETCHED = "{}: {:.1f} von {:.1f} GB", "{} ist da: {}"
GATED = (
    "{} bekommt nur, wer die Lizenz angenommen hat: auf huggingface.co/{} annehmen, 'hf auth login' ausführen, dann "
    "noch einmal versuchen"
)
NOT_FETCHED = "{} konnte nicht geholt werden: {}; was schon da ist, bleibt, noch einmal versuchen"
STOPPED_FETCHING = "Angehalten; was schon da ist, bleibt, und der nächste Versuch macht dort weiter."
SEARCHED = "Durchsucht: {}"
NO_FOLDERS = "kein Ordner von ComfyUI, A1111 oder Forge gefunden"
MODEL_FOLDER, ADD_FOLDER = "Modellordner", "Auch hier suchen"
BROWSE, OPEN_FOLDER_IN, UP = "Durchsehen", "In {}", ".. (eins höher)"
MODEL_PLACEHOLDER = "oder Pfad einer Datei oder eines Ordners, oder eine Hub-ID"
GPU, GPU_FOUND, NO_GPU = "GPU", "gefunden: {}, {:.0f} GB", "auf diesem Rechner keine GPU gefunden"
GPU_SIZE = "{} GB"
LENGTH_SLIDER = "Dauer: schnell bis gründlich"
EPOCHS_OF = "{:.1f} Epochen"
NO_TRIGGER = "{} von {} Vorschau-Prompts fehlt das Triggerwort '{}'; sie würden das Gelernte nicht zeigen"
ADD_TRIGGER = "Triggerwort in die Prompts setzen"
DRAWN_AS = "erzeugt als: {}"
LONG_PROMPTS = "{} länger als die {} Token, die der Textencoder liest; der Rest wird abgeschnitten"
LEAVE_THEM_OUT, SHOW_THEM = "{} auslassen", "Zeigen"
CAPTION_THEM, READ_TOKENS = "Mit '{}' beschreiben", "{} Token lesen"
TOO_LONG = "Bildbeschreibung länger, als der Textencoder liest"
FEW_PAIRS = "{}: aus weniger als {} ist wenig zu lernen"
MANY_EPOCHS = "{} Epochen: so oft wird jedes Bild gezeigt; das kopiert mehr, als es lehrt"
SET_STEPS = "{} Schritte setzen"
DISK_SHORT = "Festplatte: der Lauf kann {} GB schreiben, frei sind {} GB für {}; schaffen Sie Platz"
NOT_THERE_PATH = "{} gibt es nicht; wählen Sie etwas anderes oder prüfen Sie den Pfad"
REPLACED_BY = "Das Rezept wurde ersetzt durch: {}"
AN_EARLIER, BY_DEMO, BY_PAIRS = "ein früheres Rezept", "das der Demo", "eins, das mit der Auswahl trainiert"
EARLIER, RESTORE = "Frühere Rezepte", "Zurückholen"
EARLIER_ONE, NO_NAME = "{}: {}, Preset {}, {}", "ohne Namen"
FILES = "Rezept als Text, Import, frühere Rezepte"
OWN_PRESET, SAVE_PRESET = "Diese Einstellungen als eigenes Preset behalten, mit dem Namen", "Preset speichern"
PRESET_SAVED, OWN = "Das Preset {} ist gespeichert; es steht in der Liste der Presets.", "eigenes: {}"
IMPORTED, UNKNOWN = "{}: {} gelesen", ", {} unbekannt: {}"
TAKE_IMPORT = "Rezept ersetzen"
KOHYAS_NAME = " (kohya: {})"
PRESET = "Preset"
PRESET_INFO = "Davon geht alles aus; was Sie ändern, steht rechts."
NO_PRESET = "keins, die Vorgaben"
PIXEL = "Pixel-Loss"
PIXEL_INFO = "Vergleicht auch die Bilder selbst. Das kostet Zeit und Speicher in jedem Schritt, der es nutzt."
OBJECTIVE = "Woraus gelernt wird"
OBJECTIVE_INFO = (
    "Vorlieben verfeinern eine LoRA, die schon Bilder erzeugt; sie brauchen Paare oder Bewertungen, die Schritt 5 "
    "sammelt."
)
SECTIONS = {
    "length": "Dauer",
    "adapter": "Adapter",
    "loss": "Loss",
}
ALL_OPTIONS = "Weitere Optionen"
SEARCH = "Optionen suchen"
SEARCH_INFO = "Nach Namen, kohyas Namen oder Wörtern der (englischen) Hilfe: offset, network_dim, memory…"
TABLE = "Tabelle"
ALL_TABLES = "alle Tabellen"
MORE_FOUND = "{} weitere; grenzen Sie die Suche ein."
FOUND_ABOVE = "Hat oben ein Feld:"
NOTHING_FOUND = "Keine passenden Optionen."
DIFFERENCE = "Geändert gegenüber dem Preset"
NO_DIFFERENCE = "Nichts ist geändert."
TOML = "Rezept als TOML"
APPLY_TOML = "Text übernehmen"
IMPORT = "Rezept importieren (.toml, kohyas .toml oder .json)"
RECIPE_OK = "Jede Option ist lesbar. Die Prüfung unten sieht nach Modell, Bildern, Speicher und Festplatte."
OF_PRESET = "Preset: {}"
DEMO_BASE = "Mitgeliefertes Demo-Basismodell (128 px)"


OPTION_WORDS = {
    "model.path": (
        "Basismodell",
        "Eine Checkpoint-Datei (.safetensors; .ckpt nur, wenn sie nichts als Tensoren enthält), ein diffusers-Ordner "
        "oder eine Hub-ID.",
    ),
    "run.name": ("Name", "So heißen der Ordner des Laufs und seine Adapter-Datei."),
    "data.targets": (
        "Ordner der Zielbilder",
        "Ordner mit der Karte jedes Bilds, unter gleichem Namen, für einen Lauf mit [dense]: Tiefe als .npy, .npz, "
        "16-Bit-.png oder .exr; Normalen als 8- oder 16-Bit-.png oder .npy; ein Bild als beliebiges Bild.",
    ),
    "sample.prompts": (
        "Prompts",
        "Was erzeugt wird; jeder Prompt ist eine Zeile der Vorschau. Kohyas Angaben können folgen: "
        "a cat --n blurry --d 7 --w 512.",
    ),
    "sample.every": ("Alle (Schritte)", "Schritte zwischen zwei Vorschauen; 0: nur am Ende."),
    "run.steps": ("Schritte", "Wie oft der Adapter geändert wird. Ohne Schritte und Epochen: 1000."),
    "run.epochs": ("Epochen", "Statt der Schritte: wie oft alle Bilder gezeigt werden."),
    "run.batch": ("Batch-Größe", "Bilder (oder Paare), die gleichzeitig auf der GPU sind."),
    "data.resolution": (
        "Auflösung",
        "Pixel einer Seite oder [Breite, Höhe]: die Fläche, auf die Bilder skaliert werden. Leer: wofür das Modell "
        "gemacht ist.",
    ),
    "adapter.kind": (
        "Art",
        "lora lädt überall. dora trainiert auch die Größe jeder Ausgabe. loha und lokr holen mehr aus wenigen "
        "Parametern; A1111, Forge und ComfyUI lesen sie, diffusers nur nach einer Umwandlung.",
    ),
    "adapter.rank": (
        "Rank",
        "Größe des Adapters: 4-16 für ein Gesicht oder einen Gegenstand, 16-64 für einen Stil. Mehr lernt mehr "
        "Einzelheiten, und mehr auswendig.",
    ),
    "adapter.alpha": (
        "Alpha",
        "Die Wirkung des Adapters wird mit Alpha / Rank multipliziert; ein kleineres Alpha verlangt eine größere "
        "Lernrate. Leer oder 0: wie der Rank, keine Skalierung. (Kohyas Werkzeuge nehmen 1, wo nichts angegeben ist.)",
    ),
    "optimizer.kind": (
        "Optimizer",
        "Welcher Optimizer, groß oder klein geschrieben; auch eine Klasse von torch.optim oder ein Pfad mit Punkten "
        "(bitsandbytes.optim.LAMB). AdamW8bit braucht von den üblichen am wenigsten Speicher; Prodigy findet seine "
        "Schrittweite selbst, von Lernrate 1 aus.",
    ),
    "optimizer.learning_rate": (
        "Lernrate",
        "Schrittweite von allem, was keine eigene hat. Etwa 1e-4 für Adam und Verwandte, ein Drittel davon für Lion, "
        "1 für Prodigy und D-Adaptation, 2.5e-3 für schedule-free AdamW.",
    ),
    "loss.pixel.mode": (
        "Modus",
        "Welche Latents dekodiert werden: die verrauschten des Papers (mixed), die daraus folgenden sauberen (x0), "
        "saubere, gestört wie in mixed (anchored), oder etwas weniger verrauschte (stepped).",
    ),
    "loss.pixel.weight": (
        "Gewicht",
        "Womit dieser Term multipliziert wird. auto hält ihn so groß wie die Latent-Terme, mal auto_ratio.",
    ),
    "data.pairs": (
        "Ordner der Paare", "Ordner mit pairs.jsonl: zu jedem Prompt ein gewähltes und ein abgelehntes Bild.",
    ),
    "data.ratings": ("Ordner der Bewertungen", "Ordner mit ratings.jsonl: einzelne Bilder, gut gefunden oder nicht."),
    "adapter.init_from": (
        "Weiter von",
        "Eine Adapter-Datei, von der es weitergeht, von Kohyas Werkzeugen, LyCORIS, diffusers oder PEFT. Art, Ranks "
        "und Alphas bleiben.",
    ),
}  # fmt: skip
OBJECTIVES = {
    "sft": "Bilder: erzeuge solche wie diese",
    "dpo": "Paare (DPO): ziehe das gewählte Bild vor, bleib nah an der Basis",
    "ipo": "Paare (IPO): wie DPO, mit begrenztem Abstand",
    "mapo": "Paare (MaPO): ohne Referenz, lernt auch die gewählten Bilder",
    "simpo": "Paare (SimPO): ohne Referenz, schneller, leichter zu übertreiben",
    "kto": "Bewertungen (KTO): einzelne Bilder, gut gefunden oder nicht",
}

# Prüfung
CHECK, CHECK_AGAIN = "Prüfung", "Noch einmal prüfen"
CHECKING = "Der Speicher wird geschätzt… Beim ersten Mal mit einem Modell kann das Minuten dauern."
NOT_CHECKED = "Noch nicht geprüft."
NOT_READY = "Nicht bereit."
READY, TOO_LARGE = "Bereit: {}", "Es braucht mehr Speicher, als da ist: {}. Er kann ausgehen."
CHECKED = (
    "Geprüft: jede Option, die Modelldatei, die Größe jedes Bilds, Speicher, Festplatte, Länge der Bildbeschreibungen."
)
WORTH_FIXING = "Sollte behoben werden ({})"
DETAILS = "Einzelheiten"
OF_DISK = "bis zu {} GB auf der Festplatte"
CHANGED_MEANWHILE = "Rezept: es wurde während der Prüfung geändert; sehen Sie es noch einmal an, dann starten"
COMPUTE, COMPUTE_TIMES = "Rechenaufwand", "{:.1f}x so viel wie ein einfacher Schritt"
MAKE_FIT, MAKE_SMALLER = "Passend machen", "Kleiner machen"
NOT_ENOUGH = (
    "Keine Änderung der Speicheroptionen reicht: wählen Sie ein kleineres Modell, eine kleinere Auflösung, einen "
    "kleineren Rank oder eine größere GPU."
)
RENAME, USE_INSTEAD, KEEP_STEPS, REMOVE = "In {} umbenennen", "'{}' nehmen", "Schritte behalten", "Entfernen"
MODEL, DATA, HELD_OUT, LENGTH, AN_EPOCH = "Modell", "Daten", "Zurückgehalten", "Dauer", "Eine Epoche"
RESOLUTION, LOSSES, LEARNS_FROM, WRITES = "Auflösung", "Losses", "Lernt aus", "Schreibt"
STEPS_EPOCHS = "{} Schritte = {:.1f} Epochen"
PER_EPOCH = "{} Schritte über {} Samples"
OF_GPU = "{} von {} GB frei auf {}"
AT_PEAK = "Speicher in der Spitze ({})"
MAKES_FIT = "Was ihn verkleinern würde, eins nach dem anderen"
TIME, NOT_KNOWN = "Zeit", "Zeit vor dem ersten Lauf unbekannt"
PLAN = "Speicherplan"
BUCKETS = "Größen, jeweils mit Zahl der Samples"

# Training
RUN, RUNS, MORE_RUNS = "Lauf", "Läufe", "und {} weitere"
TIME_LEFT, SPEED, EPOCH, LOSS, RATE = "Restzeit", "Tempo", "Epoche", "Loss", "Lernrate"
MEMORY, ENDED = "Speicher", "Beendet"
DEFECT = "Das sieht nach einem Fehler in Pixelkiln aus. Bitte melden Sie ihn mit diesen letzten Zeilen des Protokolls:"
STEP_OF, WAITING = "Schritt {} von {}", "{} in Warteschlange"
PROMPT, SEED, PROMPT_STEP = "Prompt {}", "Seed {}", "{}, Schritt {}"
PROGRESS = "Fortschritt"
WAITS, QUEUE_PAUSED = "{} wartet: Nummer {} in der Warteschlange", "; die Warteschlange ist angehalten"
MANAGE, NEW_NAME = "Diesen Lauf umbenennen oder löschen", "Neuer Name"
RENAME_RUN, DELETE_RUN = "Umbenennen", "Löschen"
DELETE_QUESTION = "Diesen Lauf in den Papierkorb verschieben?"
RENAMED, IN_BIN = "{} heißt jetzt {}.", "Der Lauf liegt in {}; löschen Sie diesen Ordner, um den Platz freizugeben."
PAIRS_STAY = " Seine Paare bleiben in {} für Rezepte, die daraus lernen; kein anderer Lauf nimmt sie."
TRAIN_AGAIN, RECIPE_OF = "Rezept dieses Laufs nehmen", "das Rezept von {}"
COPY_PATH, DOWNLOAD, OPEN_FOLDER, COPY_THERE = (
    "Pfad kopieren", "Herunterladen", "Ordner öffnen", "Dorthin kopieren",
)  # fmt: skip
COPY_ELSEWHERE, HOST_PLACEHOLDER = "Nach ComfyUI, A1111 oder Forge kopieren", "der Ordner des Programms selbst"
NO_HOST = (
    "Kopieren: kein Programm ist gewählt, oder der Lauf hat noch keine Datei; fügen Sie in Schritt 4 den Ordner eines "
    "Programms hinzu"
)
NOT_HERE = "Ordner öffnen: die Seite ist für andere Rechner offen; nehmen Sie Herunterladen"
NO_FILE_MANAGER = "Ordner öffnen: dieser Rechner zeigt keine Ordner; es ist {}"
PREVIEW_OF, AT_PREVIEW, BEFORE_AFTER = "Vorschau von", "Bei Schritt", "Vorher | beim gewählten Schritt"
NO_RUNS = "Noch wurde nichts trainiert. Starten Sie in Schritt 2 ein Training."
PAUSE, RESUME, KILL = "Pause (speichern und anhalten)", "Fortsetzen", "Sofort beenden"
SAMPLE_NOW, SAVE_NOW = "Jetzt Vorschau erzeugen", "Jetzt speichern"
KILL_QUESTION = "Sofort beenden? Was nach dem letzten Speichern kam, geht verloren."
QUEUE = "Warteschlange"
PAUSE_QUEUE, RESUME_QUEUE = "Warteschlange anhalten", "Warteschlange fortsetzen"
RESUMES = " (wird fortgesetzt)"
QUEUE_EMPTY = "Die Warteschlange ist leer."
AFTER_DRAWING = "Es beginnt, wenn die Bilder oder die Studie von Schritt 4 oder 5 fertig sind oder dort beendet werden."
CURVE, SMOOTH, LOG_SCALE = "Kurve", "Glättung", "log10"
CURVE_NOTE = "Der Loss zeigt, dass das Training läuft, nicht wie gut die Bilder sind: sehen Sie die Vorschaubilder an."
PREVIEWS = "Vorschaubilder: eine Zeile je Prompt, eine Spalte je Schritt, gleicher Seed"
LOG = "Protokoll"
SPIKE, WARNED = "Schritt {}: der Loss ist {:.3g}, sonst {:.3g}", "Schritt {}: {}"
AXIS = "Schritt"
LINES = {
    "measured": "gemessen", "smoothed": "geglättet", "held out": "zurückgehalten", "prior": "Prior",
    "floor": "Untergrenze",
}  # fmt: skip
NO_PREVIEWS = "Noch keine Vorschaubilder."
STATES = {
    "new": "nicht gestartet", "queued": "startet", "running": "trainiert", "saving": "speichert", "done": "fertig",
    "stopped": "angehalten", "failed": "fehlgeschlagen", "waiting": "wartet",
}  # fmt: skip
DOING = {
    "starting": "startet", "loading": "lädt das Modell", "files": "sieht die Dateien durch",
    "captions": "liest Bildbeschreibungen", "pictures": "liest Bilder", "previews": "erzeugt Vorschaubilder",
    "training": "trainiert",
}  # fmt: skip
MEASURES = {
    "absrel": "AbsRel, zurückgehalten", "delta1": "delta1, zurückgehalten", "edge_f1": "Kanten-F1, zurückgehalten",
    "degrees": "Winkelfehler in Grad, zurückgehalten", "within_11": "Bis 11,25 Grad, zurückgehalten",
    "difference": "Unterschied, zurückgehalten",
}  # fmt: skip
CURVES = {
    "loss": "Loss", "lr": "Lernrate", "grad_norm": "Gradientennorm", "seconds": "Sekunden je Schritt",
    "gb": "GPU-Speicher in GB",
}  # fmt: skip
BESIDE = {"prior": "Prior {:.3g}", "floor": "Untergrenze {:.3g}"}
REMEDIES = {
    "out of memory": "Der Speicher der GPU ist voll. Verkleinern Sie Batch oder Auflösung, oder setzen Sie "
    "memory.gradient_checkpointing.",
    "CUDA": "Die GPU hat einen Fehler gemeldet. Schließen Sie andere Programme, die sie nutzen, und setzen Sie fort.",
    "No space left": "Die Festplatte ist voll. Schaffen Sie Platz, dann setzen Sie fort: der letzte Stand ist ganz.",
    "not finite": "Der Loss ist nicht endlich (NaN oder unendlich). Senken Sie die Lernrate, oder nehmen Sie bf16 oder "
    "fp32, dann setzen Sie fort.",
    "process is gone": "Der Trainer endete ohne ein Wort. Fortsetzen geht vom letzten gespeicherten Stand aus.",
}

# Vergleich
COMPARE, COMPARE_RUN, COMPARE_WHAT, COMPARE_PROMPTS = (
    "Andere erzeugen: Checkpoints, Stärken, Prompts", "Lauf", "Checkpoints", "Prompts, einer je Zeile",
)  # fmt: skip
SHOWN, VIEWS = "Bilder", {"previews": "Vorschaubilder", "drawn": "zum Vergleichen erzeugt"}
COMPARED = "A | B"
STRENGTH, DRAWN_AT, DRAW_STRENGTHS = "Stärke von B", "erzeugt mit {}", "B mit anderen Stärken erzeugen"
STRENGTHS = "Stärken"
STRENGTHS_INFO = "1 ist wie trainiert. Mehrere durch Kommas."
DRAW = "Erzeugen"
STOP_DRAWING, STOPPED = "Anhalten", "Das Erzeugen wurde angehalten; was erzeugt ist, bleibt."
DRAWING = "Bild {} von {} wird erzeugt…"
BASE, BEFORE = "Basis", "vorher"
AT_STEP, AT_EPOCH, FINAL = "{} Schritt {}", "{} Epoche {}", "{} Endstand"
GRID, VOTE_TITLE = "Nebeneinander", "Blindabstimmung"
NOTHING_TO_COMPARE = (
    "Noch wurde nichts trainiert. Starten Sie in Schritt 2 einen Lauf; seine Vorschaubilder werden hier verglichen."
)
NO_PREVIEWS_YET = "Dieser Lauf hat keine Vorschaubilder erzeugt. Erzeugen Sie unten welche."
VOTE_BLIND, END_VOTE, VOTED = "Blind abstimmen", "Abstimmung beenden", "{} von {} verglichen"
NO_TWO = (
    "Abstimmung: noch gibt es keine zwei Bilder eines Prompts; warten Sie auf eine Vorschau oder erzeugen Sie unten "
    "welche"
)
NO_WINNER = "Verwenden: kein Checkpoint liegt vorn; stimmen Sie ab oder wählen Sie unten einen"
LEVEL, WINS = "Kein Sieger: {}:{}", "{} gewinnt {}:{} ({})"
NOT_SAVED = (
    "Bei diesem Schritt wurde keine Datei gespeichert. Stellen Sie in Schritt 2 ein, wie oft gespeichert wird, oder "
    "wählen Sie unten eine andere."
)
ALL_SCORES = "Alle Ergebnisse"
MAPS, MAP_RUN, PREDICT = "Tiefe und Normalen", "Lauf, der Karten vorhersagt", "Vorhersagen"
MAP_TILES = "In Kacheln"
MAP_TILES_INFO = "Teile eines großen Bilds in der trainierten Größe, mit einem Maßstab: mehr Einzelheiten, mehr Zeit."
MAP_PICTURE, MAP_RESULT, RELIEF = "Bild", "Bild und Karte", "Relief der Tiefe; mit der Maus drehen"
NO_MAPS = "Noch hat kein Lauf Tiefe oder Normalen gelernt: ein Rezept mit [dense] tut das, aus Bildern mit Zielbildern."
MAP_NEEDS = "Vorhersagen: wählen Sie einen Lauf und legen Sie ein Bild ab"
MAP_UNREADABLE = "Vorhersagen: das Bild ist nicht lesbar; legen Sie PNG, JPEG oder WebP ab"
MAP_DONE, NEAR_IS = "{}: gespeichert in {}", " · nah ist gelb, fern ist blau"
CHOICES = {
    "left": "← Links", "tie": "↓ Gleich gut", "right": "Rechts →", "skip": "S Überspringen", "undo": "U Rückgängig",
}  # fmt: skip
ZOOM, LEFT, RIGHT = "Z Zoom", "links", "rechts"
COPIED = "Kopiert nach {}."
NO_VOTES = "Noch keine Stimmen."
TALLY = ("Besser", "Anderer", "Stimmen", "Wahrscheinlichkeit eines solchen Ergebnisses, wenn beide gleich gut sind")
LIKELY, UNSURE = "kaum Zufall", "kann Zufall sein; stimmen Sie weiter ab"
USE, USE_IT, USE_WHICH = "Einen Checkpoint verwenden", "Verwenden", "Checkpoint"
USE_WHERE = "Kopieren nach"
OTHER_HOST = "Nicht in der Liste? Der Ordner von ComfyUI, A1111 oder Forge"
ADD_HOST = "Diesen Ordner merken"

# Studien
STUDIES, STUDY, NEW_STUDY = "Studien", "Studie", "Neue Studie"
STUDY_INTRO = (
    "Eine Studie trainiert zwei oder mehr Rezepte mit mehreren Seeds, misst sie an Bildern, mit denen keins trainiert "
    "wurde, und sagt mit Intervallen, welches besser ist."
)
NO_STUDIES = "Noch keine Studie."
READY_STUDY, OWN_STUDY = "Fertige Studien", "Oder eine Studiendatei (.toml)"
STUDY_MODEL, STUDY_PICTURES, STUDYS_OWN = "Basismodell", "Bilderordner", "wie die Studie sagt"
STUDYS_NONE = "nötig: die Studie nennt nichts"
STUDY_BUDGET, STUDY_BUDGET_INFO = "Zeit", "8h oder 90m: so viele Seeds, wie passen. Leer: die Seeds der Studie."
LOOK_AT_PLAN, START_STUDY = "Plan und Zeit zeigen", "Studie starten"
STUDY_PLAN, STUDY_MAPS = "{} x {} = {}; {} zurückgehalten, {}", "ihre Karten werden gemessen"
ARMS, SEEDS, CELLS = ("Rezept", "Rezepte"), ("Seed", "Seeds"), ("Zelle", "Zellen")
STUDY_TIME, STUDY_TIME_UNKNOWN = "Zeit: {} ({})", "Zeit: vor der ersten Zelle unbekannt."
STUDY_FITS = "In {}: {} von {} Seeds."
STUDY_SPAN = "{} bis {}"
STOP_STUDY, GO_ON, TO_REPORT = "Anhalten", "Fortsetzen", "Stimmen in den Bericht aufnehmen"
STUDY_STATES = {
    "live": "läuft", "done": "fertig", "stopped": "angehalten", "failed": "fehlgeschlagen", "seen": "Kommandozeile",
}  # fmt: skip
STUDY_AT, STUDY_CELLS_DONE = "Zelle {} von {}", "{} fertig"
STUDY_STOPPED = "Sie wurde angehalten; was fertig ist, bleibt, und Fortsetzen macht dort weiter."
STUDY_ELSEWHERE = "Sie wurde auf der Kommandozeile begonnen; halten Sie sie dort an und setzen Sie sie dort fort."
STUDY_FOLDER = "Ordner der Studien"
STUDY_FILE = "Studie: wählen Sie eine fertige oder geben Sie den Pfad einer .toml-Datei an"
STUDY_LISTEN = "Studie: die Seite ist für andere Rechner offen; wählen Sie eine fertige Studie"
STUDY_NEEDS = "{}: die Studie nennt nichts; geben Sie etwas an"
NO_TARGETS = (
    "{}: {} enthält zu keinem Bild in {} eine Karte; geben Sie den Ordner der Karten mit den Namen der Bilder an"
)
NO_TIME = "Zeit: '{}' ist keine; schreiben Sie 8h, 90m oder 2h30m"
STUDY_NO_PLAN = "Studie: sehen Sie zuerst den Plan an"
STUDY_NOT_WORKING = "Studie: sie läuft nicht"
STUDY_VOTED = "Über alle ist abgestimmt."
REPORT_TAB, NO_REPORT = "Bericht in eigenem Tab öffnen", "Der Bericht kommt nach der ersten Zelle."

# Auswahl
OUTPUTS = "Oder ein Ordner erzeugter Bilder (ComfyUI, A1111)"
OUTPUTS_INFO = "Bilder desselben Prompts werden nebeneinandergelegt."
PAIRS_FOLDER = "Paare liegen in"
PAIRS_INFO = "Ein Ordner für einen Zweck. Jede Wahl wird sofort geschrieben."
LOAD = "Öffnen"
HOW_MANY = "Zu erzeugende Paare"
GENERATE, TAKES = "{} Paare erzeugen", "{} (etwa {})"
PREFER_OPTIONS = "Prompts, Anzahl, Ablage der Paare"
JUDGED, JUDGED_BY = (
    "Beurteilen", {"dpo": "welches von zweien besser ist (DPO)", "kto": "jedes für sich, gut oder schlecht (KTO)"},
)  # fmt: skip
NO_RUN_DRAWS = (
    "Erzeugen Sie Paare mit einem Lauf, der eine Datei gespeichert hat, oder öffnen Sie einen Ordner mit erzeugten "
    "Bildern. Noch wurde nichts trainiert."
)
NOTHING_TO_RATE = (
    "Nichts zu wählen. Erzeugen Sie Paare, oder geben Sie einen Ordner mit mehreren Bildern zum selben Prompt an."
)
ALL_RATED = "Alle sind entschieden. Erzeugen Sie weitere, oder trainieren Sie mit dem, was da ist."
MORE_COMES = "Bis jetzt sind alle entschieden; weitere werden erzeugt."
TRAIN_ON_THESE, TRAIN_ON = "Damit trainieren", "Jetzt trainieren: {}"
ENOUGH = "{} von etwa {} Paaren für eine brauchbare Menge"
TOO_FEW = "; ab {} können Sie trainieren"
TAKEN_BACK = "Zurückgenommen: {} für '{}'."
CHOICE, THUMB = "Wahl", "Daumen"
NOT_THERE = "Die letzte Angabe ({} für '{}') steht nicht mehr in der Datei; nichts wurde zurückgenommen."
NOTHING_TO_UNDO = "Es gibt nichts zurückzunehmen: nur was hier gewählt wurde, seit diese Seite offen ist."
LEFT_OVER, TIES, RATINGS = "noch {}", "{} gleich gut", "{} Bewertungen"
TIE_COUNT = ("mal gleich gut", "mal gleich gut")
THUMBS = {
    ("left", True): "👍 links",
    ("left", False): "👎 links",
    ("right", True): "👍 rechts",
    ("right", False): "👎 rechts",
}

# Fehler: wo: was falsch ist; was richtig wäre
CAPTION_KEPT = (
    "{}: die Bildbeschreibung wurde inzwischen anderswo zu '{}' geändert, und das bleibt; Ihre, '{}', liegt in {}"
)
NO_CAPTIONER = "{}: '{}' ist kein bekanntes Beschreibungsmodell; nehmen Sie eins von {}"
CAPTIONER_UNREADABLE = "{}: nicht lesbar ({}); nehmen Sie alle Dateien des Modells, safetensors"
FOLDER_UNREADABLE = "{}: {} ist nicht lesbar ({}); prüfen Sie die Rechte"
NOT_UTF8 = "das ist kein UTF-8-Text; speichern Sie ihn als UTF-8"
CAPTION_LOST = (
    "{} ist kein UTF-8-Text und wird nicht angezeigt: Speichern Sie die Datei als UTF-8; was Sie hier schreiben, "
    "tritt an ihre Stelle"
)
FILE_UNREADABLE = "{}: nicht lesbar ({}); prüfen Sie die Datei"
NOTHING_TO_FIND = "Suchen: da ist nichts; schreiben Sie, was ersetzt werden soll"
NO_TAG = "Tag: da ist keins; schreiben Sie eins oder mehrere mit Kommas dazwischen"
TOO_MANY_NAMED = "es gibt zu viele mit diesem Namen; benennen Sie es um"
NO_SUCH_PICTURE = "im Ordner ist kein Bild dieses Namens; legen Sie beide zusammen ab"
OTHER_CAPTION = "das Bild hat eine andere Beschreibung, und die bleibt; ändern Sie sie in ihrem Feld"
PICTURE_GONE = "Bild: es ist nicht da, oder ein Zielbild gehört dazu; öffnen Sie ein anderes"
NONE_OPEN = "Maske: kein Bild ist offen; öffnen Sie eins"
MASK_GONE = "Maske: ihr Bild ist weg; öffnen Sie ein anderes"
USE_WHAT = "Verwenden: wählen Sie einen Checkpoint und wohin er soll"
NO_FILE_YET = (
    "Lauf '{}': er hat noch keine Datei gespeichert; drücken Sie in Schritt 3 Jetzt speichern, oder warten Sie"
)
NO_PROMPTS = "Prompts: da sind keine; schreiben Sie einen je Zeile"
NO_NUMBERS = "Stärken: '{}' sind keine Zahlen; schreiben Sie zum Beispiel 0.6, 0.8, 1"
NO_CHECKPOINTS = "Checkpoints: keiner ist gewählt; wählen Sie mindestens einen"
MANY_COLUMNS = "Checkpoints: {} Spalten sind zu viele zum Ansehen; behalten Sie {} oder weniger"
THE_RECIPE = "Rezept"
NOT_TOML = "das ist kein TOML ({}); berichtigen Sie die Zeile"
CHANGED_ELSEWHERE = (
    "Rezept: es wurde inzwischen geändert, in einem Feld oder in einem anderen Fenster, und die Felder zeigen das; um "
    "es durch diesen Text zu ersetzen, übernehmen Sie ihn noch einmal"
)
TEXT_NOT_TOML = "Rezept: der Text neben dem Formular ist kein TOML ({}); berichtigen Sie ihn zuerst"
SET_ELSEWHERE = (
    "{}: ein anderes Fenster hat es inzwischen auf {!r} gesetzt, und das bleibt; für {!r} geben Sie es noch einmal ein"
)
NOT_REPLACED = "Rückgängig: kein Rezept wurde ersetzt"
RUN_UNREADABLE = "Lauf '{}': seine config.toml ist nicht lesbar; wählen Sie einen anderen"
GPU_TRAINS = "Erzeugen: Lauf '{}' trainiert auf der GPU dieses Rechners; halten Sie ihn in Schritt 3 an oder warten Sie"
GPU_DRAWS = "Erzeugen: andere Bilder werden erzeugt; warten Sie, oder drücken Sie Anhalten"
GPU_STUDIES = "Erzeugen: eine Studie läuft auf der GPU dieses Rechners; halten Sie sie in Schritt 4 an oder warten Sie"
NO_TRAINER = "Trainer: {} läuft nicht ({}); ausführen: python install.py trainer"
NOTHING_DRAWN = "Erzeugen: es wird nichts erzeugt"
FRAME_SMALL = "Zuschneiden: weniger als {} Pixel blieben von {}; ziehen Sie einen größeren Ausschnitt"
NO_FRAME = (
    "Zuschneiden: da ist kein Ausschnitt; ziehen Sie einen über das Bild, oder schreiben Sie links, oben, Breite, Höhe"
)
CANNOT_OPEN = "{}: nicht lesbar oder zu groß; {}"
REPLACE_FILE = "ersetzen Sie die Datei"
NO_CAPTION_KEPT = "sie bleibt ohne Bildbeschreibung"
CANNOT_CHANGE = "{}: nicht änderbar ({}); speichern Sie es erst als PNG"
NAME_TAKEN = "{}: ein anderes Bild dieses Namens liegt in {}; benennen Sie eins davon um"
NO_ROOM = "{}: {} braucht {} GB, und {:.1f} GB sind frei; schaffen Sie Platz"
NO_PROGRAM = "Ordner: {} enthält kein models/loras oder models/Lora; geben Sie den Ordner des Programms selbst an"
NO_LORAS = "{}: es hat keinen Ordner für LoRA-Dateien; legen Sie {} an"
CANNOT_READ = "{}: nicht lesbar; {}"
NEEDS_HEIF = (
    "HEIC braucht das Paket pillow-heif; führen Sie `{} -m pip install pillow-heif` aus und versuchen Sie es noch "
    "einmal, oder speichern Sie es als JPEG"
)
MANY_PIXELS = "{} x {} Pixel sind zu viele; verkleinern Sie das Bild"
NOT_WHOLE = "das ist kein ganzes Bild; speichern Sie es als PNG"
ANOTHER_NAMED = "es gibt ein anderes Bild namens {}; benennen Sie eins davon um"
OTHER_KIND = "das ist kein ganzes PNG-, JPEG-, WebP-, BMP- oder AVIF-Bild; speichern Sie es als eins davon"
NO_RUN_CHOSEN = "Lauf: keiner ist gewählt; wählen Sie einen aus der Liste"
NO_RUN = "Lauf: '{}' gibt es nicht; wählen Sie einen aus der Liste"
NAMES_NONE = "{}: nennt keine Bilder; geben Sie einen Ordner oder eine Datei mit Datensätzen an"
NOTHING_REPLACED = "Rückgängig: davor wurde nichts ersetzt"
NONE_CHOSEN = "Bilder: keins ist gewählt; klicken Sie auf die Marke in der Ecke eines Bilds"
OUTSIDE = "{}: {} liegt außerhalb der Ordner dieses Servers; wählen Sie einen darin oder bitten Sie, ihn freizugeben"
NO_PAIRS = "Paare: in {} sind keine; wählen Sie erst welche"
NEVER_BEGAN = "Lauf '{}': er hat nie begonnen, es gibt nichts fortzusetzen; starten Sie ihn neu"
QUEUED_ALREADY = "Lauf '{}': er ist schon in der Warteschlange"
NO_EARLIER = "Frühere Rezepte: keins ist gewählt; wählen Sie eins aus der Liste"
NO_IMPORT = "Import: da ist keine Datei; legen Sie eine ab"
PRESET_THERE = "Preset: {} gibt es schon; wählen Sie einen anderen Namen"
NOT_IMPORTED = "{}: der Trainer konnte kein Rezept daraus machen"
NOTHING_KNOWN = (
    "{}: keine Option darin ist bekannt; geben Sie ein Rezept von Pixelkiln oder eine .toml- oder .json-Datei von kohya"
)
RUN_THERE = "Neuer Name: '{}' gibt es schon; wählen Sie einen anderen"
KEEPS_NAME = "{}: das ist kein TOML ({}); der Lauf behält seinen Namen"
IS_TRAINING = "Lauf '{}': er trainiert; halten Sie ihn zuerst an"
IS_WAITING = "Lauf '{}': er wartet in der Warteschlange; nehmen Sie ihn zuerst dort heraus"
NO_FOLDER_GIVEN = "{}: kein Ordner ist angegeben; schreiben oder fügen Sie seinen Pfad ein"
IS_A_FILE = "{}: {} ist eine Datei; geben Sie ihren Ordner an"
NO_SUCH_FOLDER = "{}: {} gibt es nicht; prüfen Sie den Pfad"
NO_PATH = "{}: {!r} ist kein Pfad; prüfen Sie ihn"
NO_STUDY = "Studie: '{}' gibt es nicht; wählen Sie eine aus der Liste"
NO_STUDY_FILE = "Studie: die Datei {} gibt es nicht; prüfen Sie den Pfad"
NO_ONNX = "Tagger: onnxruntime ist nicht installiert; ausführen: pip install onnxruntime"
NO_TAG_NAMES = "{}: ohne name und category; nehmen Sie die Datei des Modells"
NOT_A_TAGGER = "{}: das ist kein Tagger ({}); nehmen Sie einen WD14-Tagger"
OTHER_TAGS = "{}: es hat {} Tags, und {} in selected_tags.csv; nehmen Sie beide Dateien vom selben Ort"
WHERE_FOLDER, WHERE_STUDIES, WHERE_UNDO, WHERE_PAIRS = "Ordner", "Studien", "Rückgängig", "Paare"
OUTPUTS_PLACE = "Ordner erzeugter Bilder"

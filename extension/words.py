"""Every string that a person reads on the page, in English; ``words_de.py`` has the same names in German, and
``language.py`` says which is meant."""

import sys

from . import language

sys.modules[__name__].__class__ = language.Table

TITLE = "Pixelkiln"
TAGLINE = "From a folder of pictures to a LoRA"
UNSET = "default"

TABS = {
    "pictures": "1 Pictures",
    "recipe": "2 Recipe",
    "train": "3 Train",
    "compare": "4 Compare",
    "prefer": "5 Prefer",
}
NEXT = {"pictures": "Next: recipe", "train": "Compare checkpoints"}
START, START_ANYWAY, CANCEL = "Start training", "Start anyway", "Cancel"
STARTS_AFTER = "Checking, then it starts"
SERVER_GONE = "The page's server does not answer. Start it again; this page comes back by itself."
SKIP = "Skip to the screen"

# Things that are counted: one, more
PICTURES, CAPTIONS, PROMPTS = ("picture", "pictures"), ("caption", "captions"), ("prompt", "prompts")
OTHER_FILES, PAIRS, RATED, OPTIONS = (
    ("other file", "other files"),
    ("pair", "pairs"),
    ("rating", "ratings"),
    ("option", "options"),
)
CHANGES, STEPS, EPOCHS = ("change", "changes"), ("step", "steps"), ("epoch", "epochs")


def number(count: int, of: tuple[str, str]) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count} {of[0] if count == 1 else of[1]}"


DARK, LANGUAGE = "Light / dark", "English / Deutsch"

NO_FILE, DISK_FAILED = "the disk", "{}: {}; make room or fix that, then do it again"
INTERNAL_ERROR = (
    "Something went wrong inside Pixelkiln; nothing was changed. The terminal that runs the page shows the traceback: "
    "please report it."
)

# Pictures
FOLDER = "Folder of pictures"
FOLDER_INFO = (
    "Paste the path of a folder, or of a TOML file with data sets (ours or kohya's). Captions are the .txt files "
    "beside the pictures; they are saved as you type."
)
OPEN = "Open"
UPLOAD = "Drop pictures here, with their .txt captions; they are copied"
DEMO = "Use the demo pictures"
NO_FOLDER = "Give a folder, drop pictures above, or begin with the bundled demo pictures."
EMPTY_FOLDER = "There are no pictures in this folder (PNG, JPEG, WebP, BMP or AVIF)."
LATER = "being looked at: {}"
SET, CAPTION = "Set", "Caption"
COUNTED = "{}, {} with a caption"
IGNORED = "ignored: {} ({})"
NO_CAPTION, UNREADABLE, VERY_LARGE, SMALL = "without caption", "unreadable", "very large", "small"
DUPLICATE, SAME_AS = "duplicate", "same as {}"
CAPTION_UNREADABLE = "caption is no UTF-8 text"
TOO_LONG_HERE, NO_TARGET, LEFT_OUT, ALL = "caption too long", "without target", "left out", "all"
TARGET_OF = "target of {}"
NOTHING_HERE = "No picture is like this."
TO_FIX = "{}, {} to look at"
ADDED = "Added to {2}: {0}, {1}."
MORE_REFUSED = "and {} more refused"
CHANGED = "Changed: {}."
RESTORED = "As before: {}."
LEFT_AS_EDITED = " Changed since, and left so: {}."
CAPTION_PLACEHOLDER = "What is in the picture"
FILTER = "Show"
CAPTION_SEARCH, CAPTION_SEARCH_HOW = "Caption contains", 'words, or "a tag"'
CHOOSE_ALL, CHOOSE_NONE, CHOSEN = "Choose all", "None", "chosen"
BULK_TAG, ADD_FIRST, ADD_LAST, TAKE_OUT = "Tags, with commas between", "Add first", "Add last", "Take out"
LEAVE_OUT, TAKE_BACK, MOVED = "Leave out", "Take back", "Moved: {}."
PREVIOUS, FOLLOWING, CLOSE, SAVED = "‹", "›", "Close", "saved ✓"
OF_TOKENS, CUT = "{} of {} tokens", "; the rest is cut"
ROTATE, ORIGINAL, PAINT, CROP = "Rotate", "Bring back the original", "Paint a mask", "Crop"
FRAME, FRAME_INFO = "Frame", "Drag over the picture, or write left, top, width, height in %."
PAINT_INFO = "What is painted is ignored by the training. Nothing painted: no mask."
SAVE_MASK = "Save the mask"
ADD = "Add pictures"
CONVERT, CONVERTED = "Save {} of other kinds as PNG", "Saved as PNG: {}."
REPLACING, UNDO_CAPTIONS = "Find and replace, in the chosen captions or in all", "Undo the last change of captions"
TRIGGER = "Trigger word"
TRIGGER_INFO = (
    "Put first in every caption while training. Use a rare word for a person or a thing; a style can do without."
)
FIND, REPLACE, WHOLE_TAGS, REPLACE_ALL, UNDO = "Find", "Replace with", "Whole tags only", "Replace", "Undo"
TAGS = "Most frequent tags"
BACK, FORWARD = "‹ Back", "More ›"
NO_TAGGER = "A tagger writes captions for you. {}. A tagger of your own (model.onnx, selected_tags.csv) goes into {}."
TAGGING_ENDED = "Tagging was stopped; what is written stays."
GET_TAGGER = "Get a tagger"
TAG, TAG_AT_LEAST = "Tag the chosen, or all without caption", "Minimum confidence"
TAGGING, TAGGED = "Tagging {} of {}…", "Written: {}."
DESCRIBE = "Describe the chosen, or all, without caption"
READING_CAPTIONER = "Reading the captioning model…"
TYPED_MEANWHILE = " Left out: {} that had one by then, or no tag above the minimum."

# Recipe
GOAL, GOAL_INFO = "What should it learn?", "Model, GPU and this together choose the preset that everything starts from."
GOALS = {
    "character": "A character or person", "style": "A style", "concept": "An object, pose or outfit",
    "detail": "A style with fine detail", "preference": "My preferences", "depth": "Depth from a picture",
    "normal": "Normals from a picture",
}  # fmt: skip
BASE_MODEL, OTHER_MODEL = "Base model", "Base model from elsewhere"
GET, GET_ONE = "Get a base model, or add a folder of models", "Get {}"
GET_ABOUT = "{}: {:.1f} GB, licence: {}; from {}"
GET_GATED = " (needs a login at the hub, where the licence is accepted first)"
FETCHING, FETCHED = "{}: {:.1f} of {:.1f} GB", "{} is here: {}"
GATED = "{} is given only to who has accepted its licence: do that at huggingface.co/{}, run 'hf auth login', try again"
NOT_FETCHED = "{} could not be fetched: {}; what has come so far is kept, try again"
STOPPED_FETCHING = "It was stopped; what has come so far is kept, and the next try continues."
SEARCHED = "Searched: {}"
NO_FOLDERS = "no folder of ComfyUI, A1111 or Forge was found"
MODEL_FOLDER, ADD_FOLDER = "Folder of models", "Search this folder too"
BROWSE, OPEN_FOLDER_IN, UP = "Browse", "In {}", ".. (one up)"
MODEL_PLACEHOLDER = "or the path of a file or folder, or a hub id"
GPU, GPU_FOUND, NO_GPU = "GPU", "found: {}, {:.0f} GB", "no GPU found on this machine"
GPU_SIZE = "{} GB"
LENGTH_SLIDER = "Length: quick to thorough"
EPOCHS_OF = "{:.1f} epochs"
NO_TRIGGER = "{} of {} preview prompts lack the trigger word '{}', so they would not show what is learned"
ADD_TRIGGER = "Put the trigger word into the prompts"
DRAWN_AS = "drawn as: {}"
LONG_PROMPTS = "{} longer than the {} tokens that the text encoder reads; the rest is cut"
LEAVE_THEM_OUT, SHOW_THEM = "Leave out {}", "Show them"
CAPTION_THEM, READ_TOKENS = "Caption them '{}'", "Read {} tokens"
TOO_LONG = "caption longer than the text encoder reads"
FEW_PAIRS = "{}: from fewer than {} little can be learned"
MANY_EPOCHS = "{} epochs: each picture is shown that many times, which copies it more than it teaches"
SET_STEPS = "Set {} steps"
DISK_SHORT = "disk: the run may write {} GB, and {} GB are free for {}; make room"
NOT_THERE_PATH = "{} is not there; choose another or check the path"
REPLACED_BY = "The recipe was replaced by: {}"
AN_EARLIER, BY_DEMO, BY_PAIRS = "an earlier recipe", "that of the demo", "one that trains on the preferences"
EARLIER, RESTORE = "Earlier recipes", "Bring it back"
EARLIER_ONE, NO_NAME = "{}: {}, preset {}, {}", "no name"
FILES = "Recipe as text, import, earlier recipes"
OWN_PRESET, SAVE_PRESET = "Keep these settings as a preset of your own, called", "Save preset"
PRESET_SAVED, OWN = "The preset {} is kept; it is in the list of presets.", "own: {}"
IMPORTED, UNKNOWN = "{}: {} read", ", {} unknown: {}"
TAKE_IMPORT = "Replace the recipe"
KOHYAS_NAME = " (kohya: {})"
PRESET = "Preset"
PRESET_INFO = "Everything starts from it; what you change is listed at the right."
NO_PRESET = "none, the defaults"
PIXEL = "Pixel loss"
PIXEL_INFO = "Compares the pictures themselves too. It costs time and memory at every step it is used."
OBJECTIVE = "What it learns from"
OBJECTIVE_INFO = "Preferences refine a LoRA that already draws; they need pairs or ratings, which step 5 collects."
SECTIONS = {
    "length": "Length",
    "adapter": "Adapter",
    "loss": "Loss",
}
ALL_OPTIONS = "More options"
SEARCH = "Search options"
SEARCH_INFO = "By name, kohya's name or words of the help: offset, network_dim, memory…"
TABLE = "Table"
ALL_TABLES = "all tables"
MORE_FOUND = "{} more; narrow the search."
FOUND_ABOVE = "Has a field above:"
NOTHING_FOUND = "No matching options."
DIFFERENCE = "Changed from the preset"
NO_DIFFERENCE = "Nothing is changed."
TOML = "Recipe as TOML"
APPLY_TOML = "Apply the text"
IMPORT = "Import a recipe (.toml, kohya's .toml or .json)"
RECIPE_OK = "Every option can be read. The check below looks at the model, the pictures, memory and disk."
OF_PRESET = "preset: {}"
DEMO_BASE = "Bundled demo base (128 px)"


OPTION_WORDS: dict[str, tuple[str, str]] = {}
"""Label and help of an option, in place of the reference's own."""
OBJECTIVES: dict[str, str] = {}
"""Title of an objective, in place of the trainer's own."""

# Check
CHECK, CHECK_AGAIN = "Check", "Check again"
CHECKING = "Estimating memory… The first time with a model this may take minutes."
NOT_CHECKED = "Not checked yet."
NOT_READY = "Not ready."
READY, TOO_LARGE = "Ready: {}", "It needs more memory than there is: {}. It may run out of it."
CHECKED = "Checked: every option, the model file, each picture's size, memory, disk, caption lengths."
WORTH_FIXING = "Worth fixing ({})"
DETAILS = "Details"
OF_DISK = "up to {} GB of disk"
CHANGED_MEANWHILE = "recipe: it was changed while it was checked; look at it again, then start"
COMPUTE, COMPUTE_TIMES = "compute", "{:.1f}x a plain step"
MAKE_FIT, MAKE_SMALLER = "Make it fit", "Make it smaller"
NOT_ENOUGH = "No change of memory options is enough: choose a smaller model, resolution or rank, or a larger GPU."
RENAME, USE_INSTEAD, KEEP_STEPS, REMOVE = "Rename to {}", "Use '{}'", "Keep the steps", "Remove"
MODEL, DATA, HELD_OUT, LENGTH, AN_EPOCH = "Model", "Data", "Held out", "Length", "An epoch"
RESOLUTION, LOSSES, LEARNS_FROM, WRITES = "Resolution", "Losses", "Learns from", "Writes"
STEPS_EPOCHS = "{} steps = {:.1f} epochs"
PER_EPOCH = "{} steps over {} samples"
OF_GPU = "{} of {} GB free on {}"
AT_PEAK = "Memory at its peak ({})"
MAKES_FIT = "What would make it smaller, one after the other"
TIME, NOT_KNOWN = "Time", "time not known before the first run"
PLAN = "Memory plan"
BUCKETS = "Sizes and how many samples each"

# Train
RUN, RUNS, MORE_RUNS = "Run", "Runs", "and {} more"
TIME_LEFT, SPEED, EPOCH, LOSS, RATE = "Time left", "Speed", "Epoch", "Loss", "Learning rate"
MEMORY, ENDED = "Memory", "Ended"
DEFECT = "This looks like a defect of Pixelkiln. Please report it with these last lines of its log:"
STEP_OF, WAITING = "step {} of {}", "{} waiting"
PROMPT, SEED, PROMPT_STEP = "prompt {}", "seed {}", "{}, step {}"
PROGRESS = "progress"
WAITS, QUEUE_PAUSED = "{} waits: number {} in the queue", "; the queue is paused"
MANAGE, NEW_NAME = "Rename or delete this run", "New name"
RENAME_RUN, DELETE_RUN = "Rename", "Delete"
DELETE_QUESTION = "Move this run to the bin?"
RENAMED, IN_BIN = "{} is now {}.", "The run lies in {}; delete that folder to free its space."
PAIRS_STAY = " Its pairs stay in {} for recipes that learn from them; no other run takes them."
TRAIN_AGAIN, RECIPE_OF = "Use this run's recipe", "the recipe of {}"
COPY_PATH, DOWNLOAD, OPEN_FOLDER, COPY_THERE = "Copy path", "Download", "Open folder", "Copy there"
COPY_ELSEWHERE, HOST_PLACEHOLDER = "Copy to ComfyUI, A1111 or Forge", "the program's own folder"
NO_HOST = "copy: no program is chosen, or the run has no file yet; add a program's folder in step 4"
NOT_HERE = "open folder: the page is open to other machines; use Download"
NO_FILE_MANAGER = "open folder: this machine shows no folders; it is {}"
PREVIEW_OF, AT_PREVIEW, BEFORE_AFTER = "Preview of", "At step", "Before | at the chosen step"
NO_RUNS = "Nothing has been trained yet. Start one in step 2."
PAUSE, RESUME, KILL = "Pause (save and stop)", "Resume", "End at once"
SAMPLE_NOW, SAVE_NOW = "Draw a preview now", "Save now"
KILL_QUESTION = "End it at once? What came after the last save is lost."
QUEUE = "Queue"
PAUSE_QUEUE, RESUME_QUEUE = "Pause queue", "Resume queue"
RESUMES = " (resumes)"
QUEUE_EMPTY = "The queue is empty."
AFTER_DRAWING = "It begins when the pictures or the study of step 4 or 5 are done, or stopped there."
CURVE, SMOOTH, LOG_SCALE = "Curve", "Smoothing", "log10"
CURVE_NOTE = "The loss shows that training works, not how good the pictures are: look at the previews."
PREVIEWS = "Previews: a row for each prompt, a column for each step, the same seed"
LOG = "Log"
SPIKE, WARNED = "step {}: the loss is {:.3g}, usually {:.3g}", "step {}: {}"
AXIS = "step"
LINES = {
    "measured": "measured", "smoothed": "smoothed", "held out": "held out", "prior": "prior", "floor": "floor",
}  # fmt: skip
NO_PREVIEWS = "No previews yet."
STATES = {
    "new": "not started", "queued": "starting", "running": "training", "saving": "saving", "done": "done",
    "stopped": "paused", "failed": "failed", "waiting": "waiting",
}  # fmt: skip
DOING = {
    "starting": "starting", "loading": "loading the model", "files": "looking at the files",
    "captions": "reading captions", "pictures": "reading pictures", "previews": "drawing previews",
    "training": "training",
}  # fmt: skip
"""What a run says before its first step."""
MEASURES = {
    "absrel": "AbsRel, held out", "delta1": "delta1, held out", "edge_f1": "Edge F1, held out",
    "degrees": "Angular error in degrees, held out", "within_11": "Within 11.25 degrees, held out",
    "difference": "Difference, held out",
}  # fmt: skip
CURVES = {
    "loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm", "seconds": "seconds per step",
    "gb": "GPU memory in GB",
}  # fmt: skip
BESIDE = {"prior": "prior {:.3g}", "floor": "floor {:.3g}"}
REMEDIES = {
    "out of memory": "The GPU's memory is full. Lower batch or resolution, or set memory.gradient_checkpointing.",
    "CUDA": "The GPU reported an error. Close other programs that use it and resume.",
    "No space left": "The disk is full. Make room, then resume: the last saved state is whole.",
    "not finite": "The loss is NaN or infinite. Lower the learning rate, or use bf16 or fp32, then resume.",
    "process is gone": "The trainer ended without a word. Resume continues from the last saved state.",
}
"""What a failed run's message holds -> what to do."""

# Compare
COMPARE, COMPARE_RUN, COMPARE_WHAT, COMPARE_PROMPTS = (
    "Draw others: checkpoints, strengths, prompts", "Run", "Checkpoints", "Prompts, one per line",
)  # fmt: skip
SHOWN, VIEWS = "Pictures", {"previews": "previews", "drawn": "drawn for comparing"}
COMPARED = "A | B"
STRENGTH, DRAWN_AT, DRAW_STRENGTHS = "Strength of B", "drawn at {}", "Draw B at other strengths"
STRENGTHS = "Strengths"
STRENGTHS_INFO = "1 is as trained. Several, with commas."
DRAW = "Draw"
STOP_DRAWING, STOPPED = "Stop", "Drawing was stopped; what is drawn is kept."
DRAWING = "Drawing {} of {}…"
BASE, BEFORE = "base", "before"
AT_STEP, AT_EPOCH, FINAL = "{} step {}", "{} epoch {}", "{} final"
GRID, VOTE_TITLE = "Side by side", "Blind vote"
NOTHING_TO_COMPARE = "Nothing has been trained yet. Start a run in step 2; its previews are compared here."
NO_PREVIEWS_YET = "This run has drawn no previews. Draw some below."
VOTE_BLIND, END_VOTE, VOTED = "Vote blind", "End the vote", "{} of {} compared"
NO_TWO = "vote: there are no two pictures of one prompt yet; wait for a preview, or draw some below"
NO_WINNER = "use: no checkpoint is ahead yet; vote, or choose one below"
LEVEL, WINS = "No winner: {}:{}", "{} wins {}:{} ({})"
NOT_SAVED = "No file was saved at that step. Set how often to save in step 2, or choose another below."
ALL_SCORES = "All scores"
MAPS, MAP_RUN, PREDICT = "Depth and normals", "Run that predicts maps", "Predict"
MAP_TILES = "In tiles"
MAP_TILES_INFO = "Parts of a large picture at the trained size, with one scale: more detail, more time."
MAP_PICTURE, MAP_RESULT, RELIEF = "Picture", "Picture and map", "Relief of the depth; turn it with the mouse"
NO_MAPS = "No run has learned depth or normals yet: a recipe with [dense] does, from pictures with targets."
MAP_NEEDS = "predict: choose a run, and drop a picture"
MAP_UNREADABLE = "predict: the picture cannot be read; drop a PNG, JPEG or WebP"
MAP_DONE, NEAR_IS = "{}: saved in {}", " · near is yellow, far is blue"
CHOICES = {"left": "← Left", "tie": "↓ Tie", "right": "Right →", "skip": "S Skip", "undo": "U Undo"}
ZOOM, LEFT, RIGHT = "Z Zoom", "left", "right"
COPIED = "Copied to {}."
NO_VOTES = "No votes yet."
TALLY = ("Better", "Other", "Votes", "Probability of such a score if equal")
LIKELY, UNSURE = "unlikely to be chance", "could be chance; vote more"
USE, USE_IT, USE_WHICH = "Use a checkpoint", "Use it", "Checkpoint"
USE_WHERE = "Copy to"
OTHER_HOST = "Not in the list? The folder of a ComfyUI, A1111 or Forge"
ADD_HOST = "Remember this folder"

# Studies
STUDIES, STUDY, NEW_STUDY = "Studies", "Study", "New study"
STUDY_INTRO = (
    "A study trains two or more recipes over several seeds, measures them on pictures that none was trained on, and "
    "says which is better, with intervals."
)
NO_STUDIES = "No study yet."
READY_STUDY, OWN_STUDY = "Ready studies", "Or a study file (.toml)"
STUDY_MODEL, STUDY_PICTURES, STUDYS_OWN = "Base model", "Folder of pictures", "as the study says"
STUDYS_NONE = "needed: the study names none"
STUDY_BUDGET, STUDY_BUDGET_INFO = "Time", "8h or 90m: as many seeds as fit. Empty: the study's seeds."
LOOK_AT_PLAN, START_STUDY = "Show plan and time", "Start the study"
STUDY_PLAN, STUDY_MAPS = "{} x {} = {}; {} held out, {}", "their maps are measured"
ARMS, SEEDS, CELLS = ("recipe", "recipes"), ("seed", "seeds"), ("cell", "cells")
STUDY_TIME, STUDY_TIME_UNKNOWN = "Time: {} ({})", "Time: not known before the first cell."
STUDY_FITS = "In {}: {} of {} seeds."
STUDY_SPAN = "{} to {}"
STOP_STUDY, GO_ON, TO_REPORT = "Stop", "Continue", "Put the votes into the report"
STUDY_STATES = {"live": "at work", "done": "done", "stopped": "stopped", "failed": "failed", "seen": "command line"}
STUDY_AT, STUDY_CELLS_DONE = "cell {} of {}", "{} done"
STUDY_STOPPED = "It was stopped; what is done is kept, and Continue goes on from there."
STUDY_ELSEWHERE = "It was begun at the command line; stop it and go on with it there."
STUDY_FOLDER = "Folder of studies"
STUDY_FILE = "study: choose a ready one, or give the path of a .toml file"
STUDY_LISTEN = "study: the page is open to other machines; choose a ready study"
STUDY_NEEDS = "{}: the study names none; give one"
NO_TARGETS = "{}: {} holds no map of any picture in {}; give the folder of maps with the pictures' names"
NO_TIME = "time: '{}' is none; write 8h, 90m or 2h30m"
STUDY_NO_PLAN = "study: look at its plan first"
STUDY_NOT_WORKING = "study: it is not at work"
STUDY_VOTED = "All are voted on."
REPORT_TAB, NO_REPORT = "Open the report in a tab of its own", "The report comes after the first cell."

# Prefer
OUTPUTS = "Or a folder of outputs (ComfyUI, A1111)"
OUTPUTS_INFO = "Pictures of the same prompt are laid side by side."
PAIRS_FOLDER = "Pairs are kept in"
PAIRS_INFO = "One folder for one purpose. Every choice is written at once."
LOAD = "Open folder"
HOW_MANY = "Pairs to draw"
GENERATE, TAKES = "Draw {} pairs", "{} (about {})"
PREFER_OPTIONS = "Prompts, number, where pairs are kept"
JUDGED, JUDGED_BY = "Judge", {"dpo": "which of two is better (DPO)", "kto": "each alone, good or bad (KTO)"}
NO_RUN_DRAWS = "Draw pairs with a run that has saved a file, or open a folder of outputs. Nothing has been trained yet."
NOTHING_TO_RATE = "Nothing to choose between. Draw pairs, or give a folder with several pictures for the same prompt."
ALL_RATED = "All are decided. Draw more, or train on what you have."
MORE_COMES = "All are decided so far; more are being drawn."
TRAIN_ON_THESE, TRAIN_ON = "Train on these", "Train on {}"
ENOUGH = "{} of about {} pairs for a useful set"
TOO_FEW = "; from {} on you can train"
USEFUL, LEAST = 50, 8
TAKEN_BACK = "Taken back: the {} for '{}'."
CHOICE, THUMB = "choice", "thumb"
NOT_THERE = "The last {} for '{}' is not in its file any more; nothing was taken back."
NOTHING_TO_UNDO = "There is nothing to take back: only what was chosen here, since this page was opened."
LEFT_OVER, TIES, RATINGS = "{} left", "{} ties", "{} ratings"
TIE_COUNT = ("tie", "ties")
THUMBS = {
    ("left", True): "👍 left",
    ("left", False): "👎 left",
    ("right", True): "👍 right",
    ("right", False): "👎 right",
}

# Errors: where: what is wrong; what would be right
CAPTION_KEPT = "{}: its caption was changed elsewhere meanwhile, to '{}', and that stays; yours, '{}', is kept in {}"
NO_CAPTIONER = "{}: '{}' is no captioner that is known; take one of {}"
CAPTIONER_UNREADABLE = "{}: it cannot be read ({}); take all files of the model, safetensors"
FOLDER_UNREADABLE = "{}: {} cannot be read ({}); check its permissions"
NOT_UTF8 = "it is not UTF-8 text; save it as UTF-8"
CAPTION_LOST = "{} is no UTF-8 text and is not shown: save it as UTF-8; what is written here takes its place"
FILE_UNREADABLE = "{}: it cannot be read ({}); check it"
NOTHING_TO_FIND = "find: nothing to look for; write what is to be replaced"
NO_TAG = "tag: there is none; write one, or several with commas between them"
TOO_MANY_NAMED = "there are too many of this name; rename it"
NO_SUCH_PICTURE = "there is no picture of this name in the folder; drop them together"
OTHER_CAPTION = "its picture has another caption, which stays; change that one in its box"
PICTURE_GONE = "picture: it is not there, or a map belongs to it; open another"
NONE_OPEN = "mask: no picture is open; open one"
MASK_GONE = "mask: its picture is gone; open another"
USE_WHAT = "use: choose a checkpoint and where it goes"
NO_FILE_YET = "run '{}': it has saved no file yet; press Save now in step 3, or wait"
NO_PROMPTS = "prompts: there are none; write one per line"
NO_NUMBERS = "strengths: '{}' are no numbers; write for example 0.6, 0.8, 1"
NO_CHECKPOINTS = "checkpoints: none is chosen; choose at least one"
MANY_COLUMNS = "checkpoints: {} columns are too many to look at; keep {} or fewer"
THE_RECIPE = "recipe"
NOT_TOML = "this is not TOML ({}); fix that line"
CHANGED_ELSEWHERE = (
    "recipe: it was changed meanwhile, in a field or in another window, and the fields show that; to replace it by "
    "this text, apply it again"
)
TEXT_NOT_TOML = "recipe: the text beside the form is not TOML ({}); fix it first"
SET_ELSEWHERE = "{}: another window has set it to {!r} meanwhile, and that stays; to set it to {!r}, enter it again"
NOT_REPLACED = "undo: no recipe was replaced"
RUN_UNREADABLE = "run '{}': its config.toml cannot be read; choose another run"
GPU_TRAINS = "draw: run '{}' trains on this machine's GPU; pause it in step 3, or wait for it"
GPU_DRAWS = "draw: other pictures are being drawn; wait for them, or press Stop"
GPU_STUDIES = "draw: a study is at work on this machine's GPU; stop it in step 4, or wait for it"
NO_TRAINER = "trainer: {} does not run ({}); run: python install.py trainer"
NOTHING_DRAWN = "draw: nothing is being drawn"
FRAME_SMALL = "crop: less than {} pixels would be left of {}; draw a larger frame"
NO_FRAME = "crop: there is no frame; drag one over the picture, or write left, top, width, height"
CANNOT_OPEN = "{}: it cannot be read, or is too large; {}"
REPLACE_FILE = "replace the file"
NO_CAPTION_KEPT = "it keeps no caption"
CANNOT_CHANGE = "{}: it cannot be changed ({}); save it as PNG first"
NAME_TAKEN = "{}: there is another picture of this name in {}; rename one of them"
NO_ROOM = "{}: {} takes {} GB, and {:.1f} GB are free; make room"
NO_PROGRAM = "folder: {} holds no models/loras or models/Lora; give the program's own folder"
NO_LORAS = "{}: it has no folder for LoRA files; make {}"
CANNOT_READ = "{}: it cannot be read; {}"
NEEDS_HEIF = "HEIC needs the package pillow-heif; run `{} -m pip install pillow-heif` and try again, or save it as JPEG"
MANY_PIXELS = "{} x {} pixels are too many; make it smaller"
NOT_WHOLE = "it is no whole picture; save it as PNG"
ANOTHER_NAMED = "there is another picture named {}; rename one of them"
OTHER_KIND = "it is no whole PNG, JPEG, WebP, BMP or AVIF picture; save it as one"
NO_RUN_CHOSEN = "run: none is chosen; choose one from the list"
NO_RUN = "run: there is no '{}'; choose one from the list"
NAMES_NONE = "{}: it names no pictures; give a folder, or a file with data sets"
NOTHING_REPLACED = "undo: nothing was replaced before"
NONE_CHOSEN = "pictures: none is chosen; click the mark in a picture's corner"
OUTSIDE = "{}: {} is outside the folders of this server; choose one in them, or ask who runs it to add this one"
NO_PAIRS = "pairs: there are none in {}; choose some first"
NEVER_BEGAN = "run '{}': it never began, so there is nothing to resume; start it again"
QUEUED_ALREADY = "run '{}': it is in the queue already"
NO_EARLIER = "earlier recipes: none is chosen; choose one from the list"
NO_IMPORT = "import: there is no file; drop one"
PRESET_THERE = "preset: there is a {} already; choose another name"
NOT_IMPORTED = "{}: the trainer could not make a recipe of it"
NOTHING_KNOWN = "{}: no option in it is known; give a recipe of Pixelkiln, or a .toml or .json of kohya's"
RUN_THERE = "new name: there is a '{}' already; choose another"
KEEPS_NAME = "{}: this is not TOML ({}); the run keeps its name"
IS_TRAINING = "run '{}': it is training; pause it first"
IS_WAITING = "run '{}': it waits in the queue; remove it there first"
NO_FOLDER_GIVEN = "{}: no folder is given; write or paste its path"
IS_A_FILE = "{}: {} is a file; give its folder"
NO_SUCH_FOLDER = "{}: {} is not there; check the path"
NO_PATH = "{}: {!r} is no path; check it"
NO_STUDY = "study: there is no '{}'; choose one from the list"
NO_STUDY_FILE = "study: there is no file {}; check the path"
NO_ONNX = "tagger: onnxruntime is not installed; run: pip install onnxruntime"
NO_TAG_NAMES = "{}: it has no name and category; take the model's own"
NOT_A_TAGGER = "{}: it is no tagger ({}); take a WD14 one"
OTHER_TAGS = "{}: it has {} tags, and {} in selected_tags.csv; take both files from the same place"
WHERE_FOLDER, WHERE_STUDIES, WHERE_UNDO, WHERE_PAIRS = "folder", "studies", "undo", "pairs"
OUTPUTS_PLACE = "folder of outputs"

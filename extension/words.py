"""Every English string that a person reads on the page, in one place; an error's line stays beside what raises it."""

TITLE = "Pixelkiln"
TAGLINE = "From a folder of pictures to a LoRA"
UNSET = "default"

TABS = {
    "pictures": "1 Pictures",
    "recipe": "2 Recipe",
    "check": "3 Check",
    "train": "4 Train",
    "compare": "5 Compare",
    "prefer": "6 Prefer",
}
NEXT = {
    "pictures": "Next: recipe",
    "recipe": "Next: check",
    "check": "Start training",
    "train": "Compare checkpoints",
}
DARK = "Light / dark"

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
LATER = "{} pictures are still to be looked at; turn the page to continue."
SET, CAPTION = "Set", "Caption"
COUNTED = "{} pictures, {} with a caption"
IGNORED = "{} other files are ignored: {}"
NO_CAPTION, UNREADABLE, VERY_LARGE, SMALL = "no caption", "cannot be read", "very large", "small"
DUPLICATE, SAME_AS = "duplicate", "same as {}"
ADDED = "{} pictures and {} captions were added to {}."
MORE_REFUSED = "{} more files were refused."
CHANGED = "{} captions were changed."
RESTORED = "{} captions are as before."
LEFT_AS_EDITED = " {} were changed since and stay as they are."
CAPTION_PLACEHOLDER = "What is in the picture"
FILTER = "Show"
FILTERS = ("all", "without caption", "with a warning")
CAPTION_SEARCH = "Caption contains"
TRIGGER = "Trigger word"
TRIGGER_INFO = (
    "Put first in every caption while training. Use a rare word for a person or a thing; a style can do without."
)
FIND, REPLACE, WHOLE_TAGS, REPLACE_ALL, UNDO = "Find", "Replace with", "Whole tags only", "Replace", "Undo"
TAGS = "Most frequent tags"
BACK, FORWARD = "‹ Back", "More ›"
NO_TAGGER = "To write captions automatically, put a WD14 tagger (model.onnx and selected_tags.csv) into {}."
TAG, TAG_AT_LEAST = "Tag pictures without caption", "Minimum confidence"
TAGGING, TAGGED = "Tagging {} of {}…", "{} captions were written."
TYPED_MEANWHILE = " {} pictures had one by then, or no tag above the minimum."

# Recipe
PRESET = "Preset"
PRESET_INFO = "A goal and a GPU. Everything below starts from it; what you change is listed at the right."
NO_PRESET = "none, the defaults"
PIXEL = "Pixel loss"
PIXEL_INFO = (
    "Also compares decoded pictures, not only latents. It sharpens edges and textures, and costs time and memory "
    "for decoding at every step."
)
OBJECTIVE = "What it learns from"
OBJECTIVE_INFO = "Preferences refine a LoRA that already draws; they need pairs or ratings, which step 6 collects."
SECTIONS = {
    "base": "Base",
    "length": "Length",
    "adapter": "Adapter",
    "loss": "Loss",
    "previews": "Previews",
}
ALL_OPTIONS = "All options"
SEARCH = "Search options"
SEARCH_INFO = "By name, kohya's name or words of the help: offset, network_dim, memory…"
TABLE = "Table"
ALL_TABLES = "all tables"
MORE_FOUND = "{} more; narrow the search."
NOTHING_FOUND = "No matching options."
DIFFERENCE = "Changed from the preset"
NO_DIFFERENCE = "Nothing is changed."
TOML = "Recipe as TOML"
APPLY_TOML = "Apply the text"
IMPORT = "Import a recipe (.toml, kohya's .toml or .json)"
RECIPE_OK = "The recipe is complete."
HEADER = "The recipe. What is not written here comes from the preset, and then from the defaults."
OF_PRESET = "preset: {}"
DEMO_BASE = "Bundled demo base (128 px)"

READ = "The recipe was read."
COPY_OF_RECIPE = "The recipe that was here is kept as {}."

# Check
CHECK_AGAIN = "Check again"
CHECKING = "Reading the pictures and estimating memory. The first time with a model this may take minutes…"
APPLY = "Apply"
MAKE_FIT, MAKE_SMALLER = "Make it fit", "Make it smaller"
NOT_ENOUGH = "No change of memory options is enough: choose a smaller model, resolution or rank, or a larger GPU."
CHECK_GOOD = "Nothing stands in the way."
OTHER_FAMILY = "The preset {} is made for another kind of model than yours, {}: choose a preset or a base that fits."
RENAME, USE_INSTEAD, KEEP_STEPS, REMOVE = "Rename to {}", "Use '{}'", "Keep the steps", "Remove"
MODEL, DATA, HELD_OUT, LENGTH, AN_EPOCH = "Model", "Data", "Held out", "Length", "An epoch"
RESOLUTION, LOSSES, LEARNS_FROM, WRITES = "Resolution", "Losses", "Learns from", "Writes"
STEPS_EPOCHS = "{} steps = {:.1f} epochs"
PER_EPOCH = "{} steps over {} samples"
OF_GPU = "{} GB of {} free on {}"
TOO_LARGE = "It needs {}, so it may run out of memory."
AT_PEAK = "Memory at its peak ({})"
MAKES_FIT = "What would make it smaller, one after the other"
TIME, ABOUT, NOT_KNOWN = "Time", "about {}", "not known yet"
BUCKETS = "Sizes and how many samples each"

# Train
RUN, RUNS, MORE_RUNS = "Run", "Runs", "and {} more"
TIME_LEFT, SPEED, EPOCH, LOSS, RATE = "Time left", "Speed", "Epoch", "Loss", "Learning rate"
MEMORY, ENDED = "Memory", "Ended"
DEFECT = "This looks like a defect of Pixelkiln. Please report it with these last lines of its log:"
STEP_OF, WAITING = "step {} of {}", "{} waiting"
PROMPT, SEED, PROMPT_STEP = "prompt {}", "seed {}", "{}, step {}"
NO_RUNS = "Nothing has been trained yet. Start a run in step 3."
PAUSE, RESUME, KILL = "Pause (save and stop)", "Resume", "End at once"
SAMPLE_NOW, SAVE_NOW = "Draw a preview now", "Save now"
KILL_QUESTION = "End it at once? What came after the last save is lost."
QUEUE = "Queue"
PAUSE_QUEUE, RESUME_QUEUE = "Pause queue", "Resume queue"
RESUMES = " (resumes)"
QUEUE_EMPTY = "The queue is empty."
AFTER_DRAWING = "It begins when the pictures of step 5 or 6 are drawn, or when drawing is stopped there."
CURVE, SMOOTH, LOG_SCALE = "Curve", "Smoothing", "log10"
CURVE_NOTE = "The loss shows that training works, not how good the pictures are: look at the previews."
PREVIEWS = "Previews: a row for each prompt, a column for each step, the same seed"
LOG = "Log"
SPIKE = "step {}: the loss is {:.3g}, usually {:.3g}"
NO_PREVIEWS = "No previews yet."
STATES = {
    "new": "not started", "queued": "starting", "running": "training", "saving": "saving", "done": "done",
    "stopped": "paused", "failed": "failed", "waiting": "waiting",
}  # fmt: skip
REMEDIES = (
    ("out of memory", "The GPU's memory is full. Lower batch or resolution, or set memory.gradient_checkpointing."),
    ("CUDA", "The GPU reported an error. Close other programs that use it and resume."),
    ("No space left", "The disk is full. Make room, then resume: the last saved state is whole."),
    (
        "not finite",
        "The loss is not finite (NaN or infinite). Lower the learning rate, or use bf16 or fp32, then resume.",
    ),
    ("process is gone", "The trainer ended without a word. Resume continues from the last saved state."),
)

# Compare
COMPARE, COMPARE_RUN, COMPARE_WHAT, COMPARE_PROMPTS = "What to compare", "Run", "Checkpoints", "Prompts, one per line"
STRENGTHS = "Strengths"
STRENGTHS_INFO = "1 is as trained; below is weaker, above stronger. Several, with commas."
DRAW = "Draw the grid"
STOP_DRAWING, STOPPED = "Stop", "Drawing was stopped; what is drawn is kept."
DRAWING = "Drawing {} of {}…"
BASE = "base"
AT_STEP, AT_EPOCH, FINAL = "{} step {}", "{} epoch {}", "{} final"
GRID, VOTE_TITLE = "Side by side", "Blind vote"
VOTE_INTRO = "Which is better? You are not told which is which until the tally. The keys ←, ↓, →, S and U do the same."
CHOICES = {"left": "← Left", "tie": "↓ Tie", "right": "Right →", "skip": "S Skip", "undo": "U Undo"}
VOTES_SO_FAR = "({} voted)"
COPIED = "Copied to {}."
SHOW_TALLY = "Show the tally"
NO_VOTES = "No votes yet."
TALLY = ("Better", "Other", "Votes", "Probability of such a score if equal", "")
LIKELY, UNSURE = "unlikely to be chance", "could be chance; vote more"
USE, USE_WHICH = "Use this one", "Checkpoint"
USE_WHERE = "Copy to"
OTHER_HOST = "Not in the list? The folder of a ComfyUI, A1111 or Forge"
ADD_HOST = "Remember this folder"

# Prefer
SOURCE = "Where the pictures come from"
SOURCES = {
    "generate": "Draw two for each prompt with a run's adapter",
    "folder": "A folder of outputs (ComfyUI, A1111): grouped by prompt",
}
OUTPUTS = "Folder of outputs"
PAIRS_FOLDER = "Pairs are kept in"
PAIRS_INFO = "One folder for one purpose. Every choice is written at once."
LOAD = "Show pairs"
GENERATE = "Draw pairs"
PREFER_INTRO = "The keys ←, ↓, →, S and U do the same. Every choice is kept at once."
NOTHING_TO_RATE = "Nothing to choose between. Draw pairs, or give a folder with several pictures for the same prompt."
ALL_RATED = "All are decided. Draw more, or train on what you have."
TRAIN_ON_THESE = "Train on these"
ENOUGH = "{} of about {} pairs for a useful set."
USEFUL = 50
TAKEN_BACK = "Taken back: the {} for '{}'."
CHOICE, THUMB = "choice", "thumb"
NOT_THERE = "The last {} for '{}' is not in its file any more; nothing was taken back."
NOTHING_TO_UNDO = "There is nothing to take back: only what was chosen here, since this page was opened."
LEFT_OVER, TIES, RATINGS = "{} left", "{} ties", "{} ratings"
THUMBS_TITLE = "Thumbs for single pictures (KTO)"
THUMBS = {
    ("left", True): "👍 left",
    ("left", False): "👎 left",
    ("right", True): "👍 right",
    ("right", False): "👎 right",
}

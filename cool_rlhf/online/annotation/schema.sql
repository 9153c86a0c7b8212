CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY,
    round INTEGER NOT NULL,
    place INTEGER NOT NULL,          -- within its round: the most wanted label first
    body TEXT NOT NULL,              -- the row of pairs.jsonl
    votes INTEGER NOT NULL DEFAULT 0 -- of people, that stand and are no skips
);
CREATE INDEX IF NOT EXISTS items_in_order ON items (round DESC, place, votes, id);

CREATE TABLE IF NOT EXISTS annotators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    kind TEXT NOT NULL CHECK (kind IN ('person', 'rule', 'judge', 'import')),
    joined_at REAL NOT NULL
);

-- Who has which item before their eyes.
CREATE TABLE IF NOT EXISTS shown (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item TEXT NOT NULL REFERENCES items,
    annotator INTEGER NOT NULL REFERENCES annotators,
    at REAL NOT NULL,
    UNIQUE (item, annotator)
);
CREATE INDEX IF NOT EXISTS shown_to ON shown (annotator, id);

-- A label that was taken back stays, with the time.
CREATE TABLE IF NOT EXISTS labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item TEXT NOT NULL REFERENCES items,
    annotator INTEGER NOT NULL REFERENCES annotators,
    winner TEXT NOT NULL CHECK (winner IN ('first', 'second', 'tie', 'both_bad', 'skip')),
    comment TEXT NOT NULL,
    seconds REAL NOT NULL,
    made_at REAL NOT NULL,
    undone_at REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_label_each ON labels (item, annotator) WHERE undone_at IS NULL;
CREATE INDEX IF NOT EXISTS labels_of ON labels (annotator, id) WHERE undone_at IS NULL;

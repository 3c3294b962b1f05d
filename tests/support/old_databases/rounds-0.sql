PRAGMA user_version = 0;
BEGIN TRANSACTION;
CREATE TABLE details (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, site TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    reason TEXT NOT NULL, bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, payload_sha256 TEXT, egress_number INTEGER,
    egress_head TEXT, receipt TEXT, PRIMARY KEY (run_id, round, kind, site)
);
INSERT INTO "details" VALUES('run',1,'train','north','update',1.5,'',10,20,'ab',7,'cd','{}');
CREATE TABLE measurements (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, sites INTEGER NOT NULL, auroc REAL, standard_error REAL, counts TEXT NOT NULL,
    PRIMARY KEY (run_id, round)
);
CREATE TABLE replies (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (run_id, round, site)
);
INSERT INTO "replies" VALUES('run',1,'north','update',1.5);
INSERT INTO "replies" VALUES('run',1,'south','NO_REPLY',2.5);
CREATE TABLE rounds (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, updates INTEGER NOT NULL, seconds REAL NOT NULL, update_norm REAL NOT NULL,
    PRIMARY KEY (run_id, round)
);
INSERT INTO "rounds" VALUES('run',1,1,2.5,0.5);
CREATE TABLE run (study_id TEXT NOT NULL, run_id TEXT PRIMARY KEY, started REAL NOT NULL, study TEXT NOT NULL);
INSERT INTO "run" VALUES('study','run',1.79535465678224635125e+09,'{}');
COMMIT;

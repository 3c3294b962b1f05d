PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE addressed (
    site TEXT NOT NULL, flower_run_id TEXT NOT NULL, message_id TEXT NOT NULL, object_id TEXT NOT NULL,
    PRIMARY KEY (site, flower_run_id, object_id, message_id)
) WITHOUT ROWID;
INSERT INTO "addressed" VALUES('north','77','m','o');
CREATE TABLE approval (
    site TEXT NOT NULL, study_id TEXT NOT NULL, decision TEXT NOT NULL, runs INTEGER NOT NULL, signed TEXT NOT NULL,
    received REAL NOT NULL, PRIMARY KEY (site, study_id)
);
INSERT INTO "approval" VALUES('north','study','approved',1,'{}',1790000000.0);
CREATE TABLE egress_receipt (
    id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, run_id TEXT NOT NULL, round INTEGER NOT NULL, statement TEXT NOT NULL,
    receipt TEXT NOT NULL
);
INSERT INTO "egress_receipt" VALUES(1,'north','run',1,'{}','{}');
CREATE TABLE invitation (
    site TEXT NOT NULL, token_sha256 TEXT PRIMARY KEY, expires REAL NOT NULL, request_sha256 TEXT
);
INSERT INTO "invitation" VALUES('south','ab',1900000000.0,NULL);
CREATE TABLE offer (
    run_id TEXT PRIMARY KEY, study_id TEXT NOT NULL, study TEXT NOT NULL, start TEXT NOT NULL, sites TEXT NOT NULL,
    created REAL NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "offer" VALUES('run','study','{}','{}','["north"]',1790000000.0,0);
CREATE TABLE push_session (
    session_id TEXT PRIMARY KEY, site TEXT NOT NULL, flower_run_id TEXT NOT NULL
);
INSERT INTO "push_session" VALUES('s','north','77');
CREATE TABLE retired_key (
    key TEXT PRIMARY KEY, site TEXT NOT NULL
);
INSERT INTO "retired_key" VALUES('old','north');
CREATE TABLE run (
    flower_run_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, study_id TEXT NOT NULL, started REAL NOT NULL
);
INSERT INTO "run" VALUES('77','run','study',1790000000.0);
CREATE TABLE site (
    name TEXT PRIMARY KEY, status TEXT NOT NULL CHECK (status IN ('requested', 'approved', 'revoked')),
    node_key TEXT NOT NULL UNIQUE, tls_key TEXT NOT NULL, signing_key TEXT NOT NULL, exchange_key TEXT NOT NULL,
    certificate_request TEXT NOT NULL, certificate TEXT, node_id TEXT, renewal_request TEXT, changed REAL NOT NULL
);
INSERT INTO "site" VALUES('north','approved','NODE','TLS','SIGN','EXCHANGE','CSR','CERT','123',NULL,1790000000.0);
CREATE TABLE site_certificate (
    fingerprint TEXT PRIMARY KEY, site TEXT NOT NULL REFERENCES site (name), not_after REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "site_certificate" VALUES('ff','north',1800000000.0,0);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('egress_receipt',1);
COMMIT;

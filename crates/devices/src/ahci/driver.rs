//! A guest's AHCI driver, for tests.

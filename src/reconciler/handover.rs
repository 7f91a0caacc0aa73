//! Handover of a node between processes: the one that started last owns its rules.
//!
//! While a new version starts beside the old one, both serve what they accept; but only the new one writes rules, and the
//! old one, when it ends, leaves them alone. Each that has something to write leaves a numbered file in a folder of the data
//! directory, which all share, and holds it locked: the kernel takes the lock back however the process ends, and shows it
//! to whoever shares the folder, also from another PID namespace. The highest number that lives is the owner, so where a
//! successor ends first, the rules are its predecessor's again.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many files of processes that may have ended are kept where the file system knows no locks.
const KEPT: u64 = 16;

/// This process's claim to the rules. Dropped, it is given up; its file stays, as the sign that rules were written.
#[derive(Debug)]
pub(super) struct Claim {
    folder: PathBuf,
    number: u64,
    ways: String,
    // Its lock is the sign of life.
    _locked: File,
}

/// Whose the rules are that this process has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// This one's.
    Ours,
    /// Another process has taken them since.
    Superseded,
    /// Another process has, and has ended.
    Abandoned,
}

impl Claim {
    /// Takes the rules over from whoever has them. `ways` tells others what kind of rules these are.
    pub(super) fn take(folder: &Path, ways: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let draft = folder.join(format!(
            ".{}-{:016x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        let taken = Self::take_by(folder, &draft, ways);
        // What stays of a crash is found by nobody.
        let _gone_with_its_name = fs::remove_file(&draft);
        taken
    }

    // By a link, so that nobody finds a file that is not locked yet, or takes a number that is taken.
    fn take_by(folder: &Path, draft: &Path, ways: &str) -> io::Result<Self> {
        let mut locked = File::create_new(draft)?;
        locked.write_all(ways.as_bytes())?;
        // A file system without locks only hides that we live.
        let _unseen = locked.try_lock();
        loop {
            let last = claims(folder)?.into_iter().max().unwrap_or(0);
            let number = last + 1;
            match fs::hard_link(draft, file(folder, number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    forget_the_ended(folder, number);
                    return Ok(Self {
                        folder: folder.to_owned(),
                        number,
                        ways: ways.to_owned(),
                        _locked: locked,
                    });
                }
            }
        }
    }

    /// Whose the rules are by now. A folder that cannot be read says nothing.
    pub(super) fn standing(&self) -> Standing {
        let later = claims(&self.folder).unwrap_or_default();
        let later = later.into_iter().filter(|number| *number > self.number);
        let mut standing = Standing::Ours;
        for number in later {
            match holder(&file(&self.folder, number)) {
                Holder::Lives | Holder::Unknown => return Standing::Superseded,
                Holder::Gone => standing = Standing::Abandoned,
            }
        }
        standing
    }

    /// The kind of the rules of whoever has them by now, in his words.
    pub(super) fn owners_ways(&self) -> io::Result<String> {
        let living = claims(&self.folder)?
            .into_iter()
            .filter(|number| *number > self.number)
            .filter(|number| !matches!(holder(&file(&self.folder, *number)), Holder::Gone));
        fs::read_to_string(file(&self.folder, living.max().unwrap_or(self.number)))
    }

    /// Takes them again, ahead of all that have been there.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        let before = file(&self.folder, self.number);
        *self = Self::take(&self.folder, &self.ways)?;
        fs::remove_file(before)
    }

    /// Whether a process that claimed before this one still runs.
    pub(super) fn has_predecessor(&self) -> bool {
        claims(&self.folder)
            .unwrap_or_default()
            .into_iter()
            .any(|number| {
                let holder = || holder(&file(&self.folder, number));
                number < self.number && matches!(holder(), Holder::Lives)
            })
    }

    /// Gives it up; what is returned tells whether another process has taken the rules then.
    pub(super) fn give_up(self) -> GivenUp {
        GivenUp {
            folder: self.folder,
            number: self.number,
        }
    }
}

/// A claim that was given up for the process before.
#[derive(Debug)]
pub(super) struct GivenUp {
    folder: PathBuf,
    number: u64,
}

impl GivenUp {
    /// Whether another process has the rules.
    pub(super) fn is_taken(&self) -> bool {
        let later = claims(&self.folder).unwrap_or_default();
        later.into_iter().any(|number| {
            let holder = || holder(&file(&self.folder, number));
            number > self.number && matches!(holder(), Holder::Lives)
        })
    }
}

fn file(folder: &Path, number: u64) -> PathBuf {
    folder.join(number.to_string())
}

// The numbers of all claims there have been, and are still known.
fn claims(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}

// Those before `number` that have ended, or as good as.
fn forget_the_ended(folder: &Path, number: u64) {
    let before = claims(folder).unwrap_or_default();
    for earlier in before.into_iter().filter(|earlier| *earlier < number) {
        let path = file(folder, earlier);
        let has_ended = match holder(&path) {
            Holder::Lives => false,
            Holder::Gone => true,
            Holder::Unknown => earlier + KEPT < number,
        };
        if has_ended {
            // Another newcomer may have been faster.
            let _gone_at_any_rate = fs::remove_file(path);
        }
    }
}

// Whether the process lives that claimed by a file.
enum Holder {
    Lives,
    Gone,
    // The file system knows no locks.
    Unknown,
}

fn holder(path: &Path) -> Holder {
    match File::open(path).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => Holder::Lives,
        Ok(Err(TryLockError::Error(_))) => Holder::Unknown,
        Err(error) if error.kind() != io::ErrorKind::NotFound => Holder::Unknown,
        // The lock that was got ends with the file that was opened.
        Ok(Ok(())) | Err(_) => Holder::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("deeper/owners")
        }

        fn claim(&self) -> Claim {
            Claim::take(&self.folder(), "IPv4 nftables\n").unwrap()
        }
    }

    #[test]
    fn the_last_to_claim_owns_the_rules() {
        let place = Place::new();
        let first = place.claim();
        assert_eq!(first.standing(), Standing::Ours);
        assert!(!first.has_predecessor());
        let second = place.claim();
        assert_eq!(first.standing(), Standing::Superseded);
        assert_eq!(second.standing(), Standing::Ours);
        assert!(second.has_predecessor() && !first.has_predecessor());
        fs::remove_dir_all(place.folder()).unwrap();
        assert_eq!(
            first.standing(),
            Standing::Ours,
            "without a file there is no other owner"
        );
        assert!(Claim::take(Path::new("/proc/none/owners"), "").is_err());
    }

    #[test]
    fn rules_of_a_successor_that_has_ended_are_taken_again() {
        let place = Place::new();
        let mut first = place.claim();
        drop(place.claim());
        assert_eq!(first.standing(), Standing::Abandoned);
        assert_eq!(
            first.standing(),
            Standing::Abandoned,
            "however often one looks"
        );
        first.renew().unwrap();
        assert_eq!(first.standing(), Standing::Ours);
        assert_eq!(
            claims(&place.folder()).unwrap().len(),
            1,
            "one file a claim"
        );
    }

    #[test]
    fn the_kind_of_rules_is_the_owners() {
        let place = Place::new();
        let first = place.claim();
        assert_eq!(first.owners_ways().unwrap(), "IPv4 nftables\n");
        let second = Claim::take(&place.folder(), "IPv4 local\n").unwrap();
        assert_eq!(first.owners_ways().unwrap(), "IPv4 local\n");
        drop(second);
        assert_eq!(first.owners_ways().unwrap(), "IPv4 nftables\n");
    }

    #[test]
    fn of_several_the_highest_that_lives_owns_the_rules() {
        let place = Place::new();
        let (first, second, third) = (place.claim(), place.claim(), place.claim());
        drop(third);
        assert_eq!(first.standing(), Standing::Superseded);
        assert_eq!(second.standing(), Standing::Abandoned);
        let fourth = place.claim();
        assert!(fourth.has_predecessor());
        drop(second);
        assert!(fourth.has_predecessor(), "the first lives");
        assert_eq!(first.standing(), Standing::Superseded);
        drop(first);
        assert!(!fourth.has_predecessor());
    }

    #[test]
    fn who_gives_up_sees_the_one_before_take_over() {
        let place = Place::new();
        let mut first = place.claim();
        let given_up = place.claim().give_up();
        assert!(!given_up.is_taken());
        first.renew().unwrap();
        assert!(given_up.is_taken());
        drop(first);
        assert!(!given_up.is_taken());
    }

    #[test]
    fn who_has_ended_leaves_no_more_than_one_file() {
        let place = Place::new();
        for _ in 0..3 {
            drop(place.claim());
        }
        assert_eq!(claims(&place.folder()).unwrap(), [3]);
        let names = fs::read_dir(place.folder()).unwrap().count();
        assert_eq!(names, 1, "no draft stays");
    }

    #[test]
    fn who_claims_at_once_gets_a_number_of_his_own() {
        let place = Place::new();
        let claim = || std::thread::scope(|_| place.claim());
        let claims: Vec<Claim> = std::thread::scope(|scope| {
            let claiming: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
            claiming.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let owners = claims.iter().filter(|it| it.standing() == Standing::Ours);
        assert_eq!(owners.count(), 1);
    }
}

//! Rules of others that serve Services on this node. Reads what the tools list; changes nothing.

use crate::model::Family;

use super::tool::run;

/// What another proxy has left or keeps in the kernel, with the remedy; empty if nothing is found. What cannot be listed
/// cannot be in use either.
pub async fn conflicts(family: Family) -> Vec<String> {
    let (word, save) = match family {
        Family::V4 => ("ip", "iptables-save"),
        Family::V6 => ("ip6", "ip6tables-save"),
    };
    let tables = run("nft", &["list", "tables"], "")
        .await
        .unwrap_or_default();
    let chains = run(save, &["-t", "nat"], "").await.unwrap_or_default();
    find(word, &tables, &chains)
}

fn find(family: &str, tables: &str, chains: &str) -> Vec<String> {
    let mut found = Vec::new();
    let table = format!("table {family} kube-proxy");
    if tables.lines().any(|line| line.trim() == table) {
        found.push(format!(
            "{table} is kube-proxy's; stop it and run `kube-proxy --cleanup`"
        ));
    }
    if chains
        .lines()
        .any(|line| line.starts_with(":KUBE-SERVICES "))
    {
        found.push(
            "chain KUBE-SERVICES in table nat is kube-proxy's; stop it and run `kube-proxy --cleanup`"
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_kube_proxy_are_found_in_their_own_family() {
        let tables = "table ip kube-proxy\ntable ip6 viaduct\n";
        assert_eq!(find("ip", tables, "").len(), 1);
        assert_eq!(find("ip6", tables, "").len(), 0);
        let chains = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n";
        assert_eq!(find("ip6", "", chains).len(), 1);
        let others = "*nat\n:MY-KUBE-SERVICES - [0:0]\n";
        assert_eq!(find("ip", "table inet kube-proxy2\n", others).len(), 0);
    }
}

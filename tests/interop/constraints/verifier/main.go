// The verdicts of Go's crypto/x509 on a list of chains, and of a TLS server where the key is given.
//
// Reads a JSON list of cases from stdin and writes a JSON list of verdicts, in order.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

type chain struct {
	Name          string   `json:"name"`
	Root          string   `json:"root"`
	Intermediates []string `json:"intermediates"`
	Leaf          string   `json:"leaf"`
	Time          int64    `json:"time"`
	// Key is the leaf's. With it, a client shows the chain to a server that requires a certificate.
	Key string `json:"key"`
	// Usages are the purposes of the leaf, each asked by itself; any if there is none.
	Usages []x509.ExtKeyUsage `json:"usages"`
	// CRLs are revocation lists in PEM. With them, the CA of each certificate of the path has to have one, as istiod
	// and Envoy want it.
	CRLs []string `json:"crls"`
}

type verdict struct {
	Name     string `json:"name"`
	Accepted bool   `json:"accepted"`
	// Parsed is false where Go refuses to read a certificate of the chain at all.
	Parsed bool   `json:"parsed"`
	Reason string `json:"reason"`
}

func parse(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, fmt.Errorf("no PEM block")
	}
	return x509.ParseCertificate(block.Bytes)
}

func judge(given chain) verdict {
	answer := verdict{Name: given.Name}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	// As every Go program reads a bundle: what it cannot read is left out.
	if !roots.AppendCertsFromPEM([]byte(given.Root)) {
		_, err := parse(given.Root)
		answer.Reason = fmt.Sprint("no trust anchor: ", err)
		return answer
	}
	for _, text := range given.Intermediates {
		certificate, err := parse(text)
		if err != nil {
			answer.Reason = err.Error()
			return answer
		}
		intermediates.AddCert(certificate)
	}
	leaf, err := parse(given.Leaf)
	if err != nil {
		answer.Reason = err.Error()
		return answer
	}
	answer.Parsed = true
	if len(given.Usages) == 0 {
		given.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, usage := range given.Usages {
		_, err = leaf.Verify(x509.VerifyOptions{
			Roots:         roots,
			Intermediates: intermediates,
			CurrentTime:   time.Unix(given.Time, 0),
			KeyUsages:     []x509.ExtKeyUsage{usage},
		})
		if err != nil {
			answer.Reason = err.Error()
			return answer
		}
	}
	if len(given.CRLs) > 0 {
		if err := revoked(given, leaf); err != nil {
			answer.Reason = err.Error()
			return answer
		}
	}
	if given.Key != "" {
		if err := shakeHands(given, roots); err != nil {
			answer.Reason = err.Error()
			return answer
		}
	}
	answer.Accepted = true
	return answer
}

// revoked says which certificate of a path is revoked, or has no list of its CA.
func revoked(given chain, leaf *x509.Certificate) error {
	path := []*x509.Certificate{leaf}
	for _, text := range append(given.Intermediates, given.Root) {
		certificate, err := parse(text)
		if err != nil {
			return err
		}
		path = append(path, certificate)
	}
	for index, certificate := range path[:len(path)-1] {
		found := false
		for _, text := range given.CRLs {
			block, _ := pem.Decode([]byte(text))
			list, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return err
			}
			if list.CheckSignatureFrom(path[index+1]) != nil {
				continue
			}
			found = true
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(certificate.SerialNumber) == 0 {
					return fmt.Errorf("revoked, reason %d: %s", entry.ReasonCode, certificate.Subject)
				}
			}
		}
		if !found {
			return fmt.Errorf("no list of the CA of %s", certificate.Subject)
		}
	}
	return nil
}

// shakeHands says why a server refuses a client with this chain. The client verifies nothing: it would want a host.
func shakeHands(given chain, roots *x509.CertPool) error {
	shown := strings.Join(append([]string{given.Leaf}, given.Intermediates...), "")
	pair, err := tls.X509KeyPair([]byte(shown), []byte(given.Key))
	if err != nil {
		return err
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	client := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
	server := tls.Server(far, &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		Time:         func() time.Time { return time.Unix(given.Time, 0) },
	})
	go func() {
		// The server's alert, or nothing at all: read until it hangs up.
		_ = client.Handshake()
		_, _ = io.Copy(io.Discard, client)
	}()
	return server.Handshake()
}

func main() {
	var cases []chain
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	verdicts := make([]verdict, 0, len(cases))
	for _, given := range cases {
		verdicts = append(verdicts, judge(given))
	}
	if err := json.NewEncoder(os.Stdout).Encode(verdicts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

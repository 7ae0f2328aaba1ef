package main

import (
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher/plugin"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
)

// stormAnswer is what many clients got that asked at the same moment. Each has a connection of its own and
// asks again as Istio's client does: that is Istio's client.
type stormAnswer struct {
	OK      int               `json:"ok"`
	Codes   map[string]int    `json:"codes"` // how calls ended, after all attempts of the client
	Example map[string]string `json:"example"`
	Repeats int               `json:"repeated_serials"`
	Seconds float64           `json:"seconds"` // from the first call to the last answer
	Half    float64           `json:"half_seconds"`
}

// storm has o.storm clients ask at once. The folder o.token holds their tokens in files 0, 1, 2 ...
func storm(o options) (*stormAnswer, error) {
	clients := make([]*citadel.CitadelClient, o.storm)
	requests := make([][]byte, o.storm)
	for i := range clients {
		csr, _, err := newCSR(o)
		if err != nil {
			return nil, err
		}
		requests[i] = csr
		if clients[i], err = newClient(o, filepath.Join(o.token, strconv.Itoa(i))); err != nil {
			return nil, err
		}
		defer clients[i].Close()
	}
	out := &stormAnswer{Codes: map[string]int{}, Example: map[string]string{}}
	serials := map[string]bool{}
	var all sync.WaitGroup
	var mutex sync.Mutex
	began := time.Now()
	for i, client := range clients {
		all.Go(func() {
			time.Sleep(time.Until(began.Add(o.within * time.Duration(i) / time.Duration(o.storm))))
			chain, err := client.CSRSign(requests[i], o.ttl)
			serial := ""
			if err == nil {
				serial, err = serialOf(chain[0])
			}
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				out.Codes[code(err)]++
				out.Example[code(err)] = err.Error()
				return
			}
			if serials[serial] {
				out.Repeats++
			}
			serials[serial] = true
			out.OK++
			if out.OK == o.storm/2 {
				out.Half = time.Since(began).Seconds()
			}
		})
	}
	all.Wait()
	out.Seconds = time.Since(began).Seconds()
	return out, nil
}

func newClient(o options, token string) (*citadel.CitadelClient, error) {
	return citadel.NewCitadelClient(&security.Options{
		CAEndpoint:    o.address,
		CAEndpointSAN: o.serverName,
		ClusterID:     o.cluster,
		CertSigner:    o.signer,
		CredFetcher:   plugin.CreateTokenPlugin(token),
	}, &citadel.TLSOptions{RootCert: o.roots, Cert: o.cert, Key: o.key})
}

func serialOf(text string) (string, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return "", errNotPEM
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return leaf.SerialNumber.Text(16), nil
}

// Command kube_apiserver is the API server of Kubernetes, and by its first argument the etcd that it stores in, or kubeadm.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "etcd" {
		etcdmain.Main(append([]string{"etcd"}, os.Args[2:]...))
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "kubeadm" {
		os.Args = os.Args[1:]
		if err := kubeadm.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
}
